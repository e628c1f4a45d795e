"""Runs the phases of a step on a device without numbers, with the product's own code."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

from megatron_resrl.checkpoint.optimizer_state import live_optimizer_tensors
from megatron_resrl.checkpoint.policy_state import sharded_state
from megatron_resrl.config.schema import Recipe
from megatron_resrl.diagnostics.standard import standard_observers
from megatron_resrl.planning.recorder import Recorder, RecordingTimers
from megatron_resrl.planning.records import PhaseRecord
from megatron_resrl.planning.scaling import combined, grown
from megatron_resrl.planning.workload import Workload
from megatron_resrl.platform.fake_device.device import FakeDevice
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.batch import RolloutBatch
from megatron_resrl.token_weighting.factory import build_weighting
from megatron_resrl.training.algorithm import algorithm_of
from megatron_resrl.training.rl_step import StepSettings, rl_step
from megatron_resrl.weights.hugging_face import export_weights

STEP_PHASES = ("scoring", "subspace", "update")


@dataclass(frozen=True)
class ShareOfStep:
    """Groups of one replica; a replica that has fewer than others still takes part."""

    scored: int
    """Of a whole step."""
    updated: int
    """Of one update."""
    updates: int
    """Of a step."""

    @classmethod
    def of(cls, recipe: Recipe, replicas: int) -> ShareOfStep:
        """The share of the replica that has most."""
        updates = recipe.algorithm.updates_per_step
        per_update = recipe.rollout.prompts_per_step // updates
        updated = max(1, math.ceil(per_update / replicas))
        return cls(updated * updates, updated, updates)


class RankPhases:
    """The phases of one rank, in the order in which a run goes through them."""

    def __init__(self, device: FakeDevice, recipe: Recipe, workload: Workload) -> None:
        """Builds the policy.

        Args:
            device: Process groups have been started and named.
            recipe: Checked settings.
            workload: Lengths of prompts and responses.
        """
        self.device = device
        self.recipe = recipe
        self.workload = workload
        self.recorder = Recorder(device)
        with self.recorder.phase("build"), device.counted_as("weights"):
            self.policy = Policy.build(
                recipe.model,
                recipe.parallel,
                recipe.precision,
                optimizer=recipe.optimizer,
                total_updates=recipe.steps * recipe.algorithm.updates_per_step,
                sequence_packing=recipe.algorithm.sequence_packing,
                load_weights=False,
            )
        self.build = self.recorder.take()["build"]
        self._name_state()
        device.memory.kind = "activations"

    def step(self) -> dict[str, PhaseRecord]:
        """Scoring, token weights and updates: counts of a whole step, peaks of its largest part.

        Two steps are taken: the first, of one group, makes the optimizer's state; the second has as
        many groups as fill the pipeline. Further groups count as much as those of the second do.
        """
        recipe = self.recipe
        share = ShareOfStep.of(recipe, parallel_state.get_data_parallel_world_size())
        # Twice the stages: interleaved chunks hold more micro-batches than there are stages.
        in_flight = 2 * recipe.parallel.pipeline_model_parallel_size
        filling = math.ceil(
            in_flight * recipe.algorithm.micro_batch_size / recipe.rollout.group_size
        )
        groups = min(share.updated, max(2, filling))
        one = self._take_step(1, number=1)
        last = self._take_step(groups, number=2)
        found = {}
        for name, phase in last.items():
            if name == "update":
                whole = grown(one[name], phase, groups, share.updated)
                found[name] = combined([(whole, share.updates)], like=phase)
            else:
                found[name] = grown(one[name], phase, groups, share.scored)
        return found

    def weight_export(self) -> PhaseRecord:
        """The weights as Hugging Face's tensors, one at a time.

        Every rank gets the weights of all stages: as many times those of its own.
        """
        with self.recorder.phase("weight_export"), self.device.counted_as("export"):
            for _ in export_weights(self.policy.modules, self.policy.hf_config):
                pass
        own = self.recorder.take()["weight_export"]
        stages = parallel_state.get_pipeline_model_parallel_world_size()
        return combined([(own, stages)], like=own)

    def checkpoint(self) -> PhaseRecord:
        """State of weights and optimizer, copied to the host as a background save does.

        Replicas share the tensors that all of them have; here each takes every n-th.
        """
        replicas = parallel_state.get_data_parallel_group(with_context_parallel=True)
        with self.recorder.phase("checkpoint"), self.device.counted_as("checkpoint"):
            state = sharded_state(self.policy, is_loading=False, with_optimizer=True)
            apply_factories(state)
            tensors = [
                each.data
                for each in nested_values(state)
                if isinstance(each, ShardedTensor) and self.device.holds(each.data)
            ]
            for tensor in tensors[replicas.rank() :: replicas.size()]:
                tensor.to("cpu", copy=True)
        return self.recorder.take()["checkpoint"]

    def _take_step(self, groups: int, *, number: int) -> dict[str, PhaseRecord]:
        """One step of so many groups per replica, in one update."""
        recipe, policy = self.recipe, self.policy
        algorithm = algorithm_of(recipe)
        timers = RecordingTimers(self.recorder, STEP_PHASES)
        # The diagnosis of some steps is not part of a step.
        observers = standard_observers(
            replace(recipe.resrl, diagnose_every=0),
            temperature=recipe.rollout.temperature,
            seed=recipe.seed,
            timers=timers,
        )
        weighting = build_weighting(
            algorithm, policy, recipe.resrl, recipe.rollout, seed=recipe.seed
        )
        rl_step(
            policy,
            algorithm,
            weighting,
            self._batch(groups),
            replace(StepSettings.from_recipe(recipe), updates_per_step=1),
            number,
            timers,
            observers,
        )
        self._name_state()
        return self.recorder.take()

    def _batch(self, groups: int) -> RolloutBatch:
        replicas = parallel_state.get_data_parallel_world_size()
        return self.workload.batch(groups * replicas, self.recipe.rollout.group_size)

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
