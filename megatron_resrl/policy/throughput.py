"""How fast a stage trains: tokens, model operations, and their share of the device's peak."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Throughput:
    """What the rates of a step are made of."""

    flops_per_token: float
    """Model operations of training on one token, see `ModelShape.training_flops`."""
    ranks: int
    peak: float | None
    """FLOP/s of one device; None: not known."""

    def rates(self, tokens: float, seconds: float) -> dict[str, float]:
        """Metrics of a step.

        `tokens_per_second` of all ranks together; `model_tflops_per_gpu` = tokens per second x
        `flops_per_token` / ranks / 10^12; `mfu`, the model's share of the peak =
        `model_tflops_per_gpu` / peak, where the peak is known.

        Args:
            tokens: Of all replicas.
            seconds: Of the step.
        """
        per_second = tokens / seconds
        tflops = per_second * self.flops_per_token / self.ranks / 1e12
        rates = {"tokens_per_second": per_second, "model_tflops_per_gpu": tflops}
        if self.peak is not None:
            rates["mfu"] = tflops * 1e12 / self.peak
        return rates

    def of_step(self, metrics: Mapping[str, float], sequence_length: int) -> dict[str, float]:
        """`rates` from a step's `batch_size` and `time/step`; nothing if no time has passed."""
        seconds = metrics["time/step"]
        return self.rates(metrics["batch_size"] * sequence_length, seconds) if seconds else {}
