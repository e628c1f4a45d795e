"""What is counted while operations are worked out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from megatron_resrl.platform.fake_device.lines import origin


@dataclass
class Ledger:
    """Counts since its creation.

    Attributes:
        waits: Line -> how often the host waits for the device there.
        calls: (group, size, collective) -> calls.
        sent: The same -> bytes that this rank sends.
        matrix_flops: Name of a number format -> operations of matrix products and attention.
        touched: Bytes that kernels other than matrix products read and write.
        host_copies: Bytes between host and device.
        kernels: Number of kernels.
        invented: Line -> numbers read there that the device does not have.
    """

    waits: Counter[str] = field(default_factory=Counter)
    calls: Counter[tuple[str, int, str]] = field(default_factory=Counter)
    sent: Counter[tuple[str, int, str]] = field(default_factory=Counter)
    matrix_flops: Counter[str] = field(default_factory=Counter)
    touched: int = 0
    host_copies: int = 0
    kernels: int = 0
    invented: Counter[str] = field(default_factory=Counter)

    def wait(self) -> None:
        """The host waits for the device here."""
        self.waits[origin().line] += 1

    def invent(self) -> None:
        """A number is read here that the device does not have."""
        self.invented[origin().line] += 1

    def communicate(self, group: str, size: int, collective: str, sent: int) -> None:
        """One call of a collective."""
        self.calls[group, size, collective] += 1
        self.sent[group, size, collective] += sent

    def add(self, other: Ledger) -> None:
        """Adds what another ledger has counted."""
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
            else:
                setattr(self, name, getattr(self, name) + value)
