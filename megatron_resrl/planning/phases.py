"""Runs the phases of a step on a device without numbers, with the product's own code."""

from __future__ import annotations

from dataclasses import replace

from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

from megatron_resrl.checkpoint.optimizer_state import live_optimizer_tensors
from megatron_resrl.checkpoint.policy_state import sharded_state
from megatron_resrl.config.schema import Recipe
from megatron_resrl.diagnostics.standard import standard_observers
from megatron_resrl.planning.recorder import Recorder, RecordingTimers
from megatron_resrl.planning.records import PhaseRecord
from megatron_resrl.planning.sample import GroupsOfStep, Sample, whole_step
from megatron_resrl.planning.scaling import combined
from megatron_resrl.planning.workload import Workload
from megatron_resrl.platform.fake_device.device import FakeDevice
from megatron_resrl.policy.policy import Policy
from megatron_resrl.token_weighting.factory import build_weighting
from megatron_resrl.training.algorithm import algorithm_of
from megatron_resrl.training.rl_step import StepSettings, rl_step
from megatron_resrl.weights.hugging_face import export_weights

STEP_PHASES = ("scoring", "subspace", "update")


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
        """Scoring, token weights and updates of a whole step.

        A first step makes the optimizer's state. Then steps of a few groups are taken, see
        `Sample`, or the whole step.
        """
        recipe = self.recipe
        self._take_step(1, warm_up=True)
        groups = GroupsOfStep.of(recipe, parallel_state.get_data_parallel_world_size())
        if self.workload.whole_step:
            return self._take_step(groups.scored, updates=groups.updates)
        sample = Sample.of(recipe)
        runs = {size: self._take_step(size) for size in sample.sizes(groups)}
        return whole_step(runs, sample, groups)

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
                tensor.to("cpu", copy=True, non_blocking=True)
        return self.recorder.take()["checkpoint"]

    def _take_step(
        self, groups: int, *, updates: int = 1, warm_up: bool = False
    ) -> dict[str, PhaseRecord]:
        """One step.

        Args:
            groups: Of each replica.
            updates: Optimizer steps.
            warm_up: Groups have two responses, both in one micro-batch.
        """
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
        settings = replace(StepSettings.from_recipe(recipe), updates_per_step=updates)
        group_size = recipe.rollout.group_size
        if warm_up:
            group_size = 2
            settings = replace(settings, passes=replace(settings.passes, micro_batch_size=2))
        replicas = parallel_state.get_data_parallel_world_size()
        batch = self.workload.batch(groups * replicas, group_size)
        rl_step(policy, algorithm, weighting, batch, settings, 1, timers, observers)
        self._name_state()
        return self.recorder.take()

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
