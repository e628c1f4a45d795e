"""Reinforcement learning on a device without numbers: decoding, and the product's own step."""

from __future__ import annotations

from dataclasses import replace

import torch
from megatron.core import parallel_state

from megatron_resrl.algorithms import Algorithm
from megatron_resrl.algorithms.distillation import TEACHER
from megatron_resrl.algorithms.kl_penalty import REFERENCE
from megatron_resrl.config.schema import Recipe
from megatron_resrl.config.shared_prompts import sharing_of
from megatron_resrl.diagnostics.standard import standard_observers
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.planning.decoding import Decoding
from megatron_resrl.planning.rank_phases import RankPhases
from megatron_resrl.planning.recorder import RecordingTimers
from megatron_resrl.planning.records import PhaseRecord
from megatron_resrl.planning.sample import GroupsOfStep, Sample, whole_step
from megatron_resrl.planning.workload import Workload
from megatron_resrl.platform.fake_device.device import FakeDevice
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.batch import RolloutBatch
from megatron_resrl.token_weighting.factory import build_weighting
from megatron_resrl.training.algorithm import algorithm_of, weighting_of
from megatron_resrl.training.other_models import OtherModel, OtherModels
from megatron_resrl.training.rl_step import StepSettings, rl_step
from megatron_resrl.training.scoring import PassSettings, Scores, score_batch
from megatron_resrl.training.single_pass import takes_single_pass

STEP_PHASES = ("scoring", "subspace", "update")


class NoPass:
    """An `OtherModel` on a server elsewhere, whose answers are not waited for."""

    def log_probs(
        self, batch: RolloutBatch, settings: PassSettings, timers: PhaseTimers
    ) -> torch.Tensor:
        """See `OtherModel.log_probs`."""
        return Scores.none(batch).log_probs


class ReferencePass:
    """An `OtherModel` that takes as much as the copy of a policy on host memory."""

    def __init__(self, device: FakeDevice, policy: Policy) -> None:
        """
        Args:
            device: Whose host copies are counted.
            policy: Without numbers, so that its own weights are as good as others.
        """
        self._device = device
        self._policy = policy

    def log_probs(
        self, batch: RolloutBatch, settings: PassSettings, timers: PhaseTimers
    ) -> torch.Tensor:
        """See `OtherModel.log_probs`."""
        weights = (each for module in self._policy.modules for each in module.parameters())
        # The policy's own to the host and back, the reference's to the device.
        self._device.ledger.host_copies += 3 * sum(each.nbytes for each in weights)
        return score_batch(self._policy, batch, settings, timers).log_probs


class RlPhases(RankPhases):
    """The phases of one rank of reinforcement learning."""

    def __init__(self, device: FakeDevice, recipe: Recipe, workload: Workload) -> None:
        """Builds the policy.

        Args:
            device: Process groups have been started and named.
            recipe: Checked settings.
            workload: Lengths of prompts and responses.
        """
        self.recipe = recipe
        self.workload = workload
        super().__init__(
            device,
            recipe,
            total_updates=recipe.steps * recipe.algorithm.updates_per_step,
            sequence_packing=recipe.algorithm.sequence_packing,
            sharing=sharing_of(recipe.algorithm, recipe.rollout),
        )

    @property
    def owns_subspace(self) -> bool:
        """See `RankPhases.owns_subspace`."""
        return self.policy.holds_tap(self.recipe.resrl.layer)

    def step(self) -> dict[str, PhaseRecord]:
        """Decoding, where the policy generates; scoring, token weights and updates.

        A first step makes the optimizer's state. Then steps of a few groups are taken, see
        `Sample`, or the whole step.
        """
        recipe, found = self.recipe, {}
        if recipe.rollout.engine == "megatron" and recipe.rollout.replay is None:
            decoding = Decoding(self.device, self.recorder, self.policy, recipe)
            found["generation"] = decoding.record(self.workload)
        self._take_step(1, warm_up=True)
        groups = GroupsOfStep.of(recipe, parallel_state.get_data_parallel_world_size())
        if self.workload.whole_step:
            return found | self._take_step(groups.scored, updates=groups.updates)
        sample = Sample.of(recipe)
        runs = {size: self._take_step(size) for size in sample.sizes(groups)}
        return found | whole_step(runs, sample, groups)

    def _others(self, algorithm: Algorithm) -> OtherModels:
        """See `training.other_models.other_models`."""
        found: dict[str, OtherModel] = {}
        if algorithm.kl is not None:
            found[REFERENCE] = ReferencePass(self.device, self.policy)
        if algorithm.needs_teacher:
            path = self.recipe.teacher.path
            found[TEACHER] = NoPass() if path is None else ReferencePass(self.device, self.policy)
        return found

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
            weighting_of(recipe), policy, recipe.resrl, recipe.rollout, seed=recipe.seed
        )
        single_pass = takes_single_pass(weighting, recipe)
        settings = replace(
            StepSettings.from_recipe(recipe, single_pass=single_pass), updates_per_step=updates
        )
        group_size = recipe.rollout.group_size
        if warm_up:
            group_size = 2
            settings = replace(settings, passes=replace(settings.passes, micro_batch_size=2))
        replicas = parallel_state.get_data_parallel_world_size()
        batch = self.workload.batch(groups * replicas, group_size)
        others = self._others(algorithm)
        rl_step(policy, algorithm, weighting, batch, settings, 1, timers, observers, others)
        self._name_state()
        return self.recorder.take()
