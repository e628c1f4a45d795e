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
        self._armed = False

    def take(self) -> torch.Tensor:
        """Returns the detached state of the forward pass just made and forgets it.

        Returns:
            [s, b, h], or [s / TP, b, h] under sequence parallelism.
        """
        if self._hidden is None:
            raise RuntimeError("no forward pass has gone through the tapped layer")
        hidden, self._hidden = self._hidden, None
        return hidden

    def _arm(self, model: torch.nn.Module, args: tuple[Any, ...]) -> None:
        self._armed = True

    def _keep(self, layer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Full recomputation runs the layer, not the model, again in the backward pass: only the
        # layer's first run after the model was entered is a forward pass.
        if self._armed:
            hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            self._hidden = hidden.detach()
            self._armed = False


@contextlib.contextmanager
def tap_last_layer(model: PolicyModel) -> Iterator[HiddenStateTap]:
    """Installs the tap on `model`, the chunk with the last layer, while the block runs."""
    tap = HiddenStateTap()
    handles = [
        model.register_forward_pre_hook(tap._arm),
        model.last_layer().register_forward_pre_hook(tap._keep, with_kwargs=True),
    ]
    try:
        yield tap
    finally:
        for handle in handles:
            handle.remove()
