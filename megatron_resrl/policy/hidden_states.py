"""The tap: one entry of Hugging Face's `hidden_states`, taken during a forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.transformer.transformer_layer import TransformerLayer

from megatron_resrl.platform.distributed import gather_objects, on_device
from megatron_resrl.policy.batches import MicroBatch
from megatron_resrl.policy.gpt import PolicyModel
from megatron_resrl.policy.results import TappedStates
from megatron_resrl.policy.schedule import AfterForward

OnHiddenStates = Callable[[TappedStates, MicroBatch], None]
"""Takes the states of a micro-batch's response tokens, right after its forward pass."""


class HiddenStateTap:
    """Holds the most recent state of one place in the model, and no other.

    Under sequence and context parallelism it is this rank's share of the sequences.
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

    def _keep_input(
        self, layer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        # Full recomputation runs the layer, not the model, again in the backward pass: only the
        # layer's first run after the model was entered is a forward pass.
        if self._armed:
            hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            self._hidden = hidden.detach()
            self._armed = False

    def _keep_output(
        self, model: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor
    ) -> None:
        self._hidden = output.detach()


class HiddenStateLocations:
    """Which pipeline stage and model chunk hold each entry of Hugging Face's `hidden_states`.

    Entry 0 is the embeddings, the input of the first layer; entry i the input of layer i; the last
    of the `num_layers + 1` entries is what the final norm makes. Negative indices count from the
    end, as in Python.
    """

    def __init__(self, modules: list[PolicyModel], num_layers: int) -> None:
        """Collective over the pipeline, whose stages may hold any number of layers.

        Args:
            modules: This rank's model chunks.
            num_layers: Of the whole model.
        """
        self.num_layers = num_layers
        self._modules = modules
        own_layers = [layer.layer_number for module in modules for layer in module.decoder.layers]
        per_stage = gather_objects(own_layers, parallel_state.get_pipeline_model_parallel_group())
        # megatron-core counts layers from 1; entry i is the input of layer i, counted from 0.
        self._stage = {
            number - 1: stage for stage, layers in enumerate(per_stage) for number in layers
        }
        self._stage[num_layers] = len(per_stage) - 1

    def stage(self, layer: int) -> int:
        """Pipeline rank that holds the entry.

        Raises:
            ValueError: The model has no such entry.
        """
        return self._stage[self._entry(layer)]

    def chunk(self, layer: int) -> PolicyModel | None:
        """The model chunk of this rank that holds the entry; None if another stage does."""
        entry = self._entry(layer)
        if self._stage[entry] != parallel_state.get_pipeline_model_parallel_rank():
            return None
        if entry == self.num_layers:
            return self._modules[-1]
        return next(module for module in self._modules if self._reader(module, entry) is not None)

    @contextlib.contextmanager
    def observing(
        self, layer: int, observer: OnHiddenStates | None
    ) -> Iterator[AfterForward | None]:
        """Shows an observer the states of every micro-batch that passes while the block runs.

        Args:
            layer: Which states.
            observer: Called on ranks of the entry's stage, for each micro-batch in order.

        Yields:
            What `run_pipeline` has to call; None: nothing, on this rank.
        """
        chunk = None if observer is None else self.chunk(layer)
        if observer is None or chunk is None:
            yield None
            return
        sliced = chunk.config.sequence_parallel
        with self.tap(layer) as tap:

            def hand_over(model: torch.nn.Module, batch: MicroBatch) -> None:
                # An update runs the chunk inside of its wrapper with the gradient buffers.
                if chunk in (model, getattr(model, "module", None)):
                    observer(response_states(tap.take(), batch, sliced), batch)

            yield hand_over

    @contextlib.contextmanager
    def tap(self, layer: int) -> Iterator[HiddenStateTap]:
        """Installs a tap on the chunk that holds the entry while the block runs.

        Only on ranks of that stage, see `chunk`.
        """
        tap, chunk = HiddenStateTap(), self.chunk(layer)
        assert chunk is not None, "only ranks of the entry's stage tap it"
        reader = self._reader(chunk, self._entry(layer))
        if reader is None:
            handles = [chunk.register_forward_hook(tap._keep_output)]
        else:
            handles = [
                chunk.register_forward_pre_hook(tap._arm),
                reader.register_forward_pre_hook(tap._keep_input, with_kwargs=True),
            ]
        try:
            yield tap
        finally:
            for handle in handles:
                handle.remove()

    def _entry(self, layer: int) -> int:
        count = self.num_layers + 1
        if not -count <= layer < count:
            raise ValueError(
                f"resrl.layer is {layer}; a model of {self.num_layers} layers has hidden states "
                f"{-count} to {count - 1}"
            )
        return layer % count

    @staticmethod
    def _reader(module: PolicyModel, entry: int) -> TransformerLayer | None:
        """The layer of `module` whose input is the entry."""
        layers = module.decoder.layers
        return next((layer for layer in layers if layer.layer_number == entry + 1), None)


def response_states(
    hidden: torch.Tensor, batch: MicroBatch, sequence_parallel: bool
) -> TappedStates:
    """Picks the states that predict response tokens.

    Args:
        hidden: [s, b, H], or [s / TP, b, H] under sequence parallelism.
        batch: The micro-batch.
        sequence_parallel: `hidden` is this rank's slice.
    """
    flat = hidden.flatten(0, 1)
    rank = parallel_state.get_tensor_model_parallel_rank()
    first = rank * len(flat) if sequence_parallel else 0
    local = batch.host.state_index - first
    token = torch.nonzero((local >= 0) & (local < len(flat))).flatten()
    chosen = on_device(local[token], flat.device)
    return TappedStates(hidden=flat.index_select(0, chosen), token=token)
