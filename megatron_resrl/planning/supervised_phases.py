"""Pretraining and fine-tuning on a device without numbers, with the product's own step."""

from __future__ import annotations

import abc

import numpy
from megatron.core import parallel_state

from megatron_resrl.config.schema_pretrain import PretrainRecipe
from megatron_resrl.config.schema_sft import SftRecipe
from megatron_resrl.config.shared_prompts import Sharing
from megatron_resrl.data.fine_tuning import Example
from megatron_resrl.data.records import PromptRecord
from megatron_resrl.planning.rank_phases import RankPhases
from megatron_resrl.planning.recorder import RecordingTimers
from megatron_resrl.planning.records import PhaseRecord
from megatron_resrl.planning.sample import GroupsOfStep, Sample, whole_step
from megatron_resrl.planning.supervised_workload import PretrainWorkload, SftWorkload
from megatron_resrl.platform.fake_device.device import FakeDevice
from megatron_resrl.training.pretrain import batch_of
from megatron_resrl.training.sft_batch import supervised_batch
from megatron_resrl.training.supervised import SupervisedBatch, supervised_step

_TOKEN = 1
"""Every token is this one; nothing reads them."""


class SupervisedPhases(RankPhases):
    """The phases of one rank of a stage whose steps are one update on the loss of tokens."""

    recipe: PretrainRecipe | SftRecipe
    z_loss_coefficient = 0.0

    @property
    @abc.abstractmethod
    def micro_batches(self) -> int:
        """Of this replica in a whole step."""

    @property
    @abc.abstractmethod
    def takes_whole_steps(self) -> bool:
        """Whether all micro-batches are taken, not a few of them."""

    @abc.abstractmethod
    def batch(self, micro_batches: int) -> SupervisedBatch:
        """What this replica takes of a step of so many micro-batches."""

    def step(self) -> dict[str, PhaseRecord]:
        """The update. A first step makes the optimizer's state; then steps of a few micro-batches
        are taken, see `Sample`, or the whole step."""
        self._take_step(1)
        count = self.micro_batches
        if self.takes_whole_steps:
            return self._take_step(count)
        sample = Sample.of_micro_batches(self.recipe.parallel)
        # What `Sample` calls groups are micro-batches here.
        groups = GroupsOfStep(count, count, 1)
        runs = {size: self._take_step(size) for size in sample.sizes(groups)}
        return whole_step(runs, sample, groups)

    def _take_step(self, micro_batches: int) -> dict[str, PhaseRecord]:
        timers = RecordingTimers(self.recorder, ("update",))
        batch = self.batch(micro_batches)
        supervised_step(self.policy, batch, self.z_loss_coefficient, timers)
        self._name_state()
        return self.recorder.take()


class PretrainPhases(SupervisedPhases):
    """The phases of one rank of pretraining."""

    recipe: PretrainRecipe

    def __init__(
        self, device: FakeDevice, recipe: PretrainRecipe, workload: PretrainWorkload
    ) -> None:
        """Builds the policy.

        Args:
            device: Process groups have been started and named.
            recipe: Checked settings.
            workload: Lengths of documents.
        """
        self.recipe = recipe
        self.workload = workload
        self.z_loss_coefficient = recipe.batch.z_loss_coefficient
        packing = recipe.data.document_mask
        super().__init__(device, recipe, total_updates=recipe.steps, sequence_packing=packing)

    @property
    def micro_batches(self) -> int:
        """See `SupervisedPhases.micro_batches`."""
        batch, replicas = self.recipe.batch, parallel_state.get_data_parallel_world_size()
        return batch.global_batch_size // replicas // batch.micro_batch_size

    @property
    def takes_whole_steps(self) -> bool:
        """See `SupervisedPhases.takes_whole_steps`."""
        return self.workload.whole_step

    def batch(self, micro_batches: int) -> SupervisedBatch:
        """See `SupervisedPhases.batch`."""
        return pretraining_batch(self.recipe, self.workload, micro_batches)


class SftPhases(SupervisedPhases):
    """The phases of one rank of fine-tuning."""

    recipe: SftRecipe

    def __init__(self, device: FakeDevice, recipe: SftRecipe, workload: SftWorkload) -> None:
        """Builds the policy.

        Args:
            device: Process groups have been started and named.
            recipe: Checked settings.
            workload: Lengths of conversations.
        """
        self.recipe = recipe
        self.workload = workload
        packing = recipe.batch.sequence_packing
        super().__init__(
            device,
            recipe,
            total_updates=recipe.steps,
            sequence_packing=packing,
            sharing=Sharing(recipe.batch.shared_prefixes, "batch.shared_prefixes"),
        )

    @property
    def micro_batches(self) -> int:
        """See `SupervisedPhases.micro_batches`."""
        return self.workload.micro_batches

    @property
    def takes_whole_steps(self) -> bool:
        """See `SupervisedPhases.takes_whole_steps`."""
        return self.workload.whole_step

    def batch(self, micro_batches: int) -> SupervisedBatch:
        """See `SupervisedPhases.batch`."""
        return fine_tuning_batch(
            self.recipe, self.workload, micro_batches, self.policy.prefix_multiple
        )


def pretraining_batch(
    recipe: PretrainRecipe, workload: PretrainWorkload, micro_batches: int
) -> SupervisedBatch:
    """So many micro-batches of sequences that are cut into documents alike."""
    size = recipe.batch.micro_batch_size
    sequence = [numpy.full(length, _TOKEN) for length in workload.parts]
    sequences = [sequence] * (micro_batches * size)
    return batch_of(sequences, size, document_mask=recipe.data.document_mask)


def fine_tuning_batch(
    recipe: SftRecipe,
    workload: SftWorkload,
    micro_batches: int,
    prefix_multiple: int | None = None,
) -> SupervisedBatch:
    """So many micro-batches of the workload's conversations, which begin differently."""
    lengths = workload.conversations * micro_batches
    examples = [_example(number, *each) for number, each in enumerate(lengths)]
    return supervised_batch(examples, recipe.batch, recipe.data.max_length, prefix_multiple)


def _example(number: int, prompt: int, response: int) -> Example:
    """A conversation whose first token is its number; its answer is learned."""
    tokens = numpy.full(prompt + response, _TOKEN, numpy.int32)
    tokens[0] = number
    targets = numpy.arange(prompt + response) >= prompt
    record = PromptRecord(0, [], None, "", {})
    return Example(tokens, targets, record)
