"""The tap: the input of the last transformer layer, taken during a forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from megatron_resrl.policy.gpt import PolicyModel


class HiddenStateTap:
    """Holds the most recent input of the last layer, Hugging Face's `hidden_states[-2]`.

    Under sequence parallelism it is this rank's contiguous slice of the sequence.
    """

    def __init__(self) -> None:
        self._hidden: torch.Tensor | None = None

    def take(self) -> torch.Tensor:
        """Returns the detached state of the forward pass just made and forgets it.

        Returns:
            [s, b, h], or [s / TP, b, h] under sequence parallelism.
        """
        if self._hidden is None:
            raise RuntimeError("no forward pass has gone through the tapped layer")
        hidden, self._hidden = self._hidden, None
        return hidden

    def _keep(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Full recomputation runs the layer again in the backward pass; the first run counts.
        if self._hidden is None:
            hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            self._hidden = hidden.detach()


@contextlib.contextmanager
def tap_last_layer(model: PolicyModel) -> Iterator[HiddenStateTap]:
    """Installs the tap on `model`, the chunk with the last layer, while the block runs."""
    tap = HiddenStateTap()
    handle = model.last_layer().register_forward_pre_hook(tap._keep, with_kwargs=True)
    try:
        yield tap
    finally:
        handle.remove()
