"""What one rank goes through in a run of any stage, on a device without numbers."""

from __future__ import annotations

import abc
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

from megatron_resrl.checkpoint.optimizer_state import live_optimizer_tensors
from megatron_resrl.checkpoint.policy_state import sharded_state
from megatron_resrl.config.schema import RunSettings
from megatron_resrl.planning.recorder import Recorder
from megatron_resrl.planning.records import PhaseRecord
from megatron_resrl.planning.scaling import combined
from megatron_resrl.platform.fake_device.device import FakeDevice
from megatron_resrl.policy.policy import Policy
from megatron_resrl.weights.hugging_face import export_weights


class RankPhases(abc.ABC):
    """The phases of one rank, in the order in which a run goes through them.

    A stage says how the policy is built and what a step is, with the product's own code.

    Attributes:
        policy: With an optimizer and without numbers.
    """

    def __init__(self, device: FakeDevice, recipe: RunSettings, **how_to_build: Any) -> None:
        """Builds the policy.

        Args:
            device: Process groups have been started and named.
            recipe: Checked settings.
            how_to_build: Arguments of `Policy.build`, as the stage gives them.
        """
        self.device = device
        self.recorder = Recorder(device)
        with self.recorder.phase("build"), device.counted_as("weights"):
            self.policy = Policy.build(
                recipe.model,
                recipe.parallel,
                recipe.precision,
                optimizer=recipe.optimizer,
                load_weights=False,
                **how_to_build,
            )
        self._build = self.recorder.take()["build"]
        self._name_state()
        device.memory.kind = "activations"

    @abc.abstractmethod
    def step(self) -> dict[str, PhaseRecord]:
        """The phases of a whole step, by name."""

    @property
    def owns_subspace(self) -> bool:
        """Whether token weights are made on this rank."""
        return False

    def records(self) -> tuple[PhaseRecord, ...]:
        """All phases."""
        step = self.step()
        return (self._build, *step.values(), self._weight_export(), self._checkpoint())

    def _weight_export(self) -> PhaseRecord:
        """The weights as Hugging Face's tensors, one at a time.

        Every rank gets the weights of all stages: as many times those of its own.
        """
        with self.recorder.phase("weight_export"), self.device.counted_as("export"):
            for _ in export_weights(self.policy.modules, self.policy.hf_config):
                pass
        own = self.recorder.take()["weight_export"]
        stages = parallel_state.get_pipeline_model_parallel_world_size()
        return combined([(own, stages)], like=own)

    def _checkpoint(self) -> PhaseRecord:
        """State of weights and optimizer, copied to the host as a background save does.

        Replicas share the tensors that all of them have; here each takes every n-th. Shards of the
        distributed optimizer have one owner.
        """
        replicas = parallel_state.get_data_parallel_group(with_context_parallel=True)
        with self.recorder.phase("checkpoint"), self.device.counted_as("checkpoint"):
            state = sharded_state(self.policy)
            apply_factories(state)
            owned = self._on_device(state.pop("optimizer"))
            shared = self._on_device(state)
            if not self.policy.chunks[0].ddp_config.use_distributed_optimizer:
                owned, shared = [], shared + owned
            for tensor in owned + shared[replicas.rank() :: replicas.size()]:
                tensor.to("cpu", copy=True, non_blocking=True)
        return self.recorder.take()["checkpoint"]

    def _on_device(self, state: dict[Any, Any]) -> list[torch.Tensor]:
        """The tensors of a sharded state dict that are on the device."""
        tensors = [v.data for v in nested_values(state) if isinstance(v, ShardedTensor)]
        return [tensor for tensor in tensors if self.device.holds(tensor)]

    def _name_state(self) -> None:
        """Says what the memory of the policy is."""
        memory, policy = self.device.memory, self.policy
        parameters = [p for module in policy.modules for p in module.parameters()]
        memory.rename(parameters, "weights")
        buffers = [
            buffer
            for chunk in policy.chunks
            for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers)
        ]
        memory.rename([buffer.grad_data for buffer in buffers], "gradients")
        memory.rename([b.param_data for b in buffers if b.param_data is not None], "weights")
        shared = {parameter.untyped_storage()._cdata for parameter in parameters}
        state = live_optimizer_tensors(policy)
        memory.rename([t for t in state if t.untyped_storage()._cdata not in shared], "optimizer")
