"""Plans of pretraining and fine-tuning: every step is one update on the cross-entropy of tokens."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_resrl.config.schema_pretrain import PretrainRecipe
from megatron_resrl.config.schema_sft import SftRecipe
from megatron_resrl.errors import SettingError
from megatron_resrl.planning.job import Job
from megatron_resrl.planning.lengths import Lengths
from megatron_resrl.planning.links import Cluster
from megatron_resrl.planning.micro_batch import micro_batch_of
from megatron_resrl.planning.options import PlanOptions
from megatron_resrl.planning.step_work import StepWork, replicas_of
from megatron_resrl.planning.supervised_workload import PretrainWorkload, SftWorkload
from megatron_resrl.policy.model_shape import ModelShape
from megatron_resrl.policy.throughput import Throughput


@dataclass(frozen=True, kw_only=True)
class SupervisedJob(Job):
    """A recipe of pretraining or fine-tuning on some machines."""

    replicas: int
    """Data-parallel copies of the model."""

    @property
    @abc.abstractmethod
    def step_tokens(self) -> float:
        """Tokens of the whole step, without padding."""

    @property
    @abc.abstractmethod
    def peak_tflops(self) -> float | None:
        """Of one GPU, of which MFU is a share; None: that of the GPU's table."""

    def rates(self, seconds: float) -> Mapping[str, float]:
        """As the run itself reports them, see `Throughput.rates`."""
        dtype = "float32" if self.recipe.precision.params_dtype == "fp32" else "bfloat16"
        peak = self.cluster.gpu.matrix_flops[dtype]
        if self.peak_tflops is not None:
            peak = self.peak_tflops * 1e12
        flops = self.model.training_flops(self.work.row)
        return Throughput(flops, self.cluster.world_size, peak).rates(self.step_tokens, seconds)


@dataclass(frozen=True, kw_only=True)
class PretrainJob(SupervisedJob):
    """A recipe of pretraining on some machines."""

    recipe: PretrainRecipe
    document_tokens: int | None = None
    """Mean length of documents under `data.document_mask`; None: sequences are whole."""

    @classmethod
    def of(
        cls, recipe: PretrainRecipe, model: ModelShape, cluster: Cluster, options: PlanOptions
    ) -> PretrainJob:
        """The job of a recipe that has no problems; its dry runs have no layers yet.

        Raises:
            SettingError: `--document_tokens` is given, and documents are not told apart.
        """
        tokens = options.document_tokens
        if tokens is not None and not recipe.data.document_mask:
            problem = "attention crosses documents: data.document_mask is false"
            raise SettingError("--document_tokens", tokens, problem, "leave it out")
        return cls(
            recipe=recipe,
            model=model,
            cluster=cluster,
            replicas=replicas_of(recipe.parallel, cluster.world_size),
            document_tokens=tokens,
        )

    @property
    def peak_tflops(self) -> float | None:
        """See `SupervisedJob.peak_tflops`."""
        return self.recipe.logging.peak_tflops

    @property
    def step_tokens(self) -> float:
        """See `SupervisedJob.step_tokens`."""
        return self.recipe.batch.global_batch_size * self.recipe.data.sequence_length

    @property
    def work(self) -> StepWork:
        """See `Job.work`."""
        return self._work(min(self.recipe.data.sequence_length, self.document_tokens or 2**62))

    @property
    def largest(self) -> StepWork:
        """See `Job.largest`."""
        return self._work(self.recipe.data.sequence_length)

    def _work(self, row: int) -> StepWork:
        batch, length = self.recipe.batch, self.recipe.data.sequence_length
        own = math.ceil(batch.global_batch_size / self.replicas)
        count = math.ceil(own / batch.micro_batch_size)
        tokens = batch.micro_batch_size * length
        return StepWork(
            *(self.replicas, 1, count, count, tokens, row, tokens * row / 2, tokens),
            scoring=None,
            logits_twice=False,
        )

    @property
    def step_in_words(self) -> str:
        """See `Job.step_in_words`."""
        batch = self.recipe.batch
        documents = ""
        if self.document_tokens is not None:
            documents = f" in documents of {self.document_tokens}"
        return (
            f"{batch.global_batch_size} sequences of {self.recipe.data.sequence_length} tokens"
            f"{documents}; {self.work.micro_batches} micro-batches of {batch.micro_batch_size} on "
            "each replica"
        )

    def step_json(self) -> dict[str, Any]:
        """See `Job.step_json`."""
        return {
            "sequences": self.recipe.batch.global_batch_size,
            "tokens": self.step_tokens,
            "micro_batches": self.work.micro_batches,
            "updates": 1,
        }

    def workloads(self) -> tuple[PretrainWorkload, PretrainWorkload]:
        """See `Job.workloads`."""
        # A sequence feeds one token less than it has.
        tokens = self.recipe.data.sequence_length + 1
        part = min(tokens, self.document_tokens or tokens)
        rest = (tokens % part,) if tokens % part else ()
        return PretrainWorkload((part,) * (tokens // part) + rest), PretrainWorkload((tokens,))


@dataclass(frozen=True, kw_only=True)
class SftJob(SupervisedJob):
    """A recipe of fine-tuning on some machines."""

    recipe: SftRecipe
    prompt_tokens: int
    """Tokens of a conversation that are not learned; mean, at least 1."""
    response_tokens: int
    """Tokens that are; mean."""

    @classmethod
    def of(
        cls, recipe: SftRecipe, model: ModelShape, cluster: Cluster, options: PlanOptions
    ) -> SftJob:
        """The job of a recipe that has no problems; its dry runs have no layers yet.

        Raises:
            SettingError: Conversations would be longer than the recipe allows.
        """
        limit = recipe.data.max_length
        response = options.response_tokens
        prompt = options.prompt_tokens or max(1, limit - (response or limit - 1))
        response = response or limit - prompt
        if prompt + response > limit or response < 1:
            given = "--prompt_tokens" if options.prompt_tokens else "--response_tokens"
            problem = f"conversations are longer than data.max_length {limit}"
            fix = f"let --prompt_tokens and --response_tokens add up to at most {limit}"
            raise SettingError(given, options.prompt_tokens or response, problem, fix)
        return cls(
            recipe=recipe,
            model=model,
            cluster=cluster,
            replicas=replicas_of(recipe.parallel, cluster.world_size),
            prompt_tokens=prompt,
            response_tokens=response,
        )

    @property
    def peak_tflops(self) -> float | None:
        """See `SupervisedJob.peak_tflops`."""
        return None

    @property
    def step_tokens(self) -> float:
        """See `SupervisedJob.step_tokens`."""
        return self.recipe.batch.global_batch_size * (self.prompt_tokens + self.response_tokens)

    @property
    def work(self) -> StepWork:
        """See `Job.work`."""
        return self._work(self._conversations(self.prompt_tokens, self.response_tokens))

    @property
    def largest(self) -> StepWork:
        """See `Job.largest`."""
        return self._work(self._longest())

    def _conversations(self, prompt: int, response: int) -> tuple[tuple[int, int], ...]:
        """The conversations of one micro-batch, alike: tokens before the answer, and its own."""
        micro_batch = micro_batch_of(self.recipe)
        if not self.recipe.batch.sequence_packing:
            # Rows are as long as the longest of a micro-batch.
            limit = self.recipe.data.max_length - prompt
            longest = round(Lengths(response, limit).longest_of(micro_batch.value))
            return ((prompt, max(response, longest)),) * micro_batch.value
        # The last token of a conversation is predicted, never fed.
        count = max(1, micro_batch.value // (prompt + response - 1))
        return ((prompt, response),) * min(count, self._own)

    def _longest(self) -> tuple[tuple[int, int], ...]:
        """The micro-batch that takes most: all tokens of conversations as long as allowed are
        learned, and a packed one is full."""
        limit, micro_batch = self.recipe.data.max_length, micro_batch_of(self.recipe)
        if not self.recipe.batch.sequence_packing:
            return ((1, limit - 1),) * micro_batch.value
        whole, rest = divmod(micro_batch.value, limit - 1)
        rows = ((1, limit - 1),) * whole + (((1, rest),) if rest else ())
        return rows[: self._own]

    @property
    def _own(self) -> int:
        """Conversations of a replica."""
        return math.ceil(self.recipe.batch.global_batch_size / self.replicas)

    def _work(self, conversations: tuple[tuple[int, int], ...]) -> StepWork:
        fed = [prompt + response - 1 for prompt, response in conversations]
        count = math.ceil(self._own / len(conversations))
        tokens, row = sum(fed), max(fed) + 1
        return StepWork(
            replicas=self.replicas,
            updates=1,
            micro_batches=count,
            micro_batches_per_update=count,
            tokens=tokens,
            row=row,
            pairs=tokens * row / 2,
            targets=sum(response for _, response in conversations),
            scoring=None,
            logits_twice=False,
        )

    @property
    def step_in_words(self) -> str:
        """See `Job.step_in_words`."""
        batch, micro_batch = self.recipe.batch, micro_batch_of(self.recipe)
        size = f"up to {micro_batch.value} tokens" if batch.sequence_packing else micro_batch.value
        return (
            f"{batch.global_batch_size} conversations of {self.prompt_tokens} + "
            f"{self.response_tokens} tokens (at most {self.recipe.data.max_length}); "
            f"{self.work.micro_batches} micro-batches of {size} on each replica"
        )

    def step_json(self) -> dict[str, Any]:
        """See `Job.step_json`."""
        return {
            "conversations": self.recipe.batch.global_batch_size,
            "prompt_tokens": self.prompt_tokens,
            "response_tokens": self.response_tokens,
            "tokens": self.step_tokens,
            "micro_batches": self.work.micro_batches,
            "updates": 1,
        }

    def workloads(self) -> tuple[SftWorkload, SftWorkload]:
        """See `Job.workloads`."""
        mean = self._conversations(self.prompt_tokens, self.response_tokens)
        return SftWorkload(mean, self._own), SftWorkload(self._longest(), self._own)
