"""A plan of reinforcement learning: responses are generated, scored and trained on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_resrl.config.schema import Recipe
from megatron_resrl.planning.embedded import EmbeddedEngine
from megatron_resrl.planning.fit import (
    Verdict,
    cache_advice,
    server_advice,
    server_verdicts,
    with_margin,
)
from megatron_resrl.planning.generation import (
    Server,
    generation_seconds,
    server_memory,
    transfer_seconds,
)
from megatron_resrl.planning.job import Job, Rollouts, phases_by_verdict
from megatron_resrl.planning.links import Cluster
from megatron_resrl.planning.options import PlanOptions
from megatron_resrl.planning.records import RankRecord
from megatron_resrl.planning.step_shape import StepShape
from megatron_resrl.planning.step_work import StepWork
from megatron_resrl.policy.model_shape import ModelShape


@dataclass(frozen=True, kw_only=True)
class RlJob(Job):
    """A recipe of reinforcement learning on some machines."""

    recipe: Recipe
    step: StepShape
    """As long as responses are on average."""
    longest: StepShape
    """As long as the recipe allows."""
    server: Server
    """One of the vLLM servers, if they generate."""
    decode_host_s: float = 0.0

    @classmethod
    def of(cls, recipe: Recipe, model: ModelShape, cluster: Cluster, options: PlanOptions) -> RlJob:
        """The job of a recipe that has no problems; its dry runs have no layers yet."""
        world = cluster.world_size
        server = Server.of(recipe.vllm)
        if recipe.vllm.urls:  # The recipe does not say how servers were started.
            server = dataclasses.replace(server, gpus=options.server_gpus or 1)
        return cls(
            recipe=recipe,
            model=model,
            cluster=cluster,
            step=StepShape.of(
                *(recipe, world, model.layers),
                prompt_tokens=options.prompt_tokens,
                response_tokens=options.response_tokens,
            ),
            longest=StepShape.of(recipe, world, model.layers),
            server=server,
            decode_host_s=(options.decode_host_ms or 0.0) / 1e3,
        )

    @property
    def work(self) -> StepWork:
        """See `Job.work`."""
        return self.step.work

    @property
    def largest(self) -> StepWork:
        """See `Job.largest`."""
        return self.longest.work

    @property
    def uses_vllm(self) -> bool:
        """Whether servers generate."""
        return self.recipe.rollout.engine == "vllm" and self.recipe.rollout.replay is None

    @property
    def shares_gpus(self) -> bool:
        """Whether the servers share the trainer's GPUs."""
        return self.uses_vllm and self.recipe.rollout.placement == "colocated"

    @property
    def runs_ahead(self) -> bool:
        """See `Job.runs_ahead`."""
        return self.recipe.rollout.max_staleness > 0

    @property
    def embedded(self) -> EmbeddedEngine | None:
        """The policy as its own engine; None: it does not generate."""
        rollout = self.recipe.rollout
        if rollout.engine != "megatron" or rollout.replay is not None:
            return None
        return EmbeddedEngine(self.model, self.recipe.parallel, rollout.max_running_samples)

    @property
    def servers(self) -> int:
        """vLLM servers that generate, on all nodes that have them."""
        vllm = self.recipe.vllm
        return len(vllm.urls) or vllm.servers * (vllm.nodes or self.cluster.nodes)

    @property
    def engine_in_words(self) -> str:
        """See `Job.engine_in_words`."""
        if not self.uses_vllm:
            return "embedded engine"
        return f"vLLM, {self.servers} server{'s' if self.servers > 1 else ''}"

    @property
    def step_in_words(self) -> str:
        """See `Job.step_in_words`."""
        step = self.step
        return (
            f"{step.prompts} prompts of {step.prompt_tokens} tokens x {step.group_size} "
            f"responses of {step.lengths.mean:.0f} tokens (at most {step.lengths.limit}); "
            f"{step.micro_batches} micro-batches of {step.micro_batch_size} on each replica, "
            f"{step.updates} update{'s' if step.updates > 1 else ''}, "
            f"{step.passes} forward pass{'es' if step.passes > 1 else ''}{self._prompts_in_words()}"
        )

    def _prompts_in_words(self) -> str:
        step = self.step
        if step.together == 1:
            return ""
        copies = step.micro_batch_size * step.row_tokens
        fed = step.work.tokens
        return f"\nshared prompts: {fed:.0f} tokens of a micro-batch instead of {copies:.0f}"

    def step_json(self) -> dict[str, Any]:
        """See `Job.step_json`."""
        step = self.step
        return {
            "responses": step.responses,
            "prompt_tokens": step.prompt_tokens,
            "response_tokens": step.lengths.mean,
            "micro_batches": step.micro_batches,
            "updates": step.updates,
            "passes": step.passes,
            "shared_prompts": step.together > 1,
            "micro_batch_tokens": step.work.tokens,
        }

    def workloads(self) -> tuple[Any, Any]:
        """See `Job.workloads`."""
        from megatron_resrl.planning.workload import Workload  # It imports torch.

        mean, longest = (
            Workload(shape.prompt_tokens, max(1, round(shape.response_row)))
            for shape in (self.step, self.longest)
        )
        return mean, longest

    def rollouts(self, ranks: Sequence[RankRecord]) -> Rollouts:
        """Generation, and new weights for the servers."""
        if self.uses_vllm:
            generation = generation_seconds(
                self.step,
                self.servers,
                self.server,
                self.model,
                self.cluster.gpu,
                host_s=self.decode_host_s,
            )
            verdicts = tuple(self._server_verdicts(ranks))
            return Rollouts(generation, transfer_seconds(self.model), verdicts)
        if engine := self.embedded:
            seconds = engine.seconds(self.step, self.cluster.gpu)
            return Rollouts(seconds, verdicts=tuple(self._cache_verdicts(engine, ranks)))
        return Rollouts()

    def changes(self, failing: Sequence[Verdict], ranks: Sequence[RankRecord]) -> list[str]:
        """For the trainer, the embedded engine's cache, and vLLM."""
        found = super().changes(failing, ranks)
        phases = phases_by_verdict(ranks)
        decoding = [
            each
            for each in failing
            if each.what.startswith("generation") and each.what not in phases
        ]
        if decoding and self.embedded:
            worst = max(failing, key=lambda each: each.needed - each.available)
            over = max(each.needed - each.available for each in decoding)
            cache = cache_advice(self.recipe, self.embedded.cache_bytes(self.longest), over)
            found.insert(0 if worst in decoding else len(found), cache)
        for each in failing:
            if each.what.startswith("vLLM"):
                found += server_advice(self.server, each, self.cluster.gpu)
        return found

    def _cache_verdicts(
        self, engine: EmbeddedEngine, ranks: Sequence[RankRecord]
    ) -> Iterator[Verdict]:
        """The cache beside what a rank holds between phases, where no dry run has decoded."""
        if any(phase.name == "generation" for rank in ranks for phase in rank.phases):
            return
        cache = engine.cache_bytes(self.longest)
        for rank in ranks:
            needed = with_margin(_between_phases(rank) + cache)
            yield Verdict(f"generation, {rank.role}", needed, self.cluster.gpu.memory)

    def _server_verdicts(self, ranks: Sequence[RankRecord]) -> Iterator[Verdict]:
        server = self.server
        memory = server_memory(server, self.model, self.cluster.gpu)
        tokens = self.longest.prompt_tokens + self.longest.lengths.limit
        per_response = tokens * self.model.cache_per_token / min(server.gpus, self.model.key_heads)
        resident = 0
        if self.shares_gpus:
            # The trainer's state stays on the GPU while the server is awake.
            resident = max(map(_between_phases, ranks), default=0)
        return server_verdicts(
            server,
            memory,
            self.cluster.gpu,
            per_response=math.ceil(per_response),
            resident=resident,
        )


def _between_phases(rank: RankRecord) -> int:
    """Bytes that a rank holds when a step's training begins, with scoring or with the update."""
    return next((p.start_bytes for p in rank.phases if p.name in ("scoring", "update")), 0)
