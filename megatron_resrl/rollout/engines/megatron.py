"""The embedded engine: the policy decodes by itself, batched, with a key-value cache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_resrl.platform.distributed import (
    any_rank,
    gather_objects,
    max_over_ranks,
    on_device,
)
from megatron_resrl.platform.phases import progress
from megatron_resrl.policy.experts import expert_sync_group
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.engine import (
    DeferredRollout,
    GenerationRequest,
    PendingRollout,
    Response,
    RolloutEngine,
    SamplingParams,
)
from megatron_resrl.rollout.engines.cached_decoder import (
    CachedDecoder,
    one_attention,
    whole_sequences,
)
from megatron_resrl.rollout.sampling import draw_tokens, uniform_numbers


@dataclass
class _PartialResponse:
    """A response being decoded."""

    prompt: int
    """Its prompt's place in the request."""
    uniform: list[float]
    """The random number of each of its tokens."""
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    stopped: bool = False


class MegatronEngine(RolloutEngine):
    """Samples with the trainer's own weights: no second copy, no transfer.

    Data-parallel replicas, and the context-parallel ranks of each, which all hold the whole model,
    share the prompts. A prompt is read once for all its samples, and finished rows leave the batch
    when they are half of it. Replicas that share their experts make the same number of forward
    passes: a replica without unfinished rows continues with a row whose tokens are not used.
    """

    finishes_groups_together = True

    def __init__(self, policy: Policy, *, max_running_samples: int) -> None:
        """
        Args:
            policy: Decodes with its current weights at each call.
            max_running_samples: Rows decoded at once by one replica; bounds the cache.
        """
        self.policy = policy
        self.max_running_samples = max_running_samples
        self.version = 0

    def begin(self, request: GenerationRequest) -> PendingRollout:
        """See `RolloutEngine.begin`; decodes when the result is asked for."""
        return DeferredRollout(lambda: self._generate(request))

    @torch.no_grad()
    def _generate(self, request: GenerationRequest) -> list[list[Response]]:
        count, samples = len(request.prompts), request.sampling.n
        # Every replica decodes each R-th prompt, R being the number of replicas.
        decoders = parallel_state.get_data_parallel_group(with_context_parallel=True)
        own = list(range(decoders.rank(), count, decoders.size()))
        self.policy.eval()
        done: dict[int, list[Response]] = {}
        with whole_sequences(self.policy.modules), one_attention(self.policy.modules):
            for batch in self._batches_in_step(request.prompts, own, samples):
                counted = (len(done) * samples, len(own) * samples)
                done |= self._decode(request, batch, counted)
        # An all-gather: every rank gets all responses.
        for of_rank in gather_objects(done, decoders):
            done |= of_rank
        if request.on_group and dist.get_rank() == 0:
            for place in range(count):
                request.on_group(place, done[place])
        return [done[place] for place in range(count)]

    def update_weights(self, version: int) -> dict[str, float]:
        """Nothing to move: the policy's own parameters decode."""
        self.version = version
        return {}

    def sleep(self) -> None:
        """Nothing to free: the caches of a rollout end with it."""

    def close(self) -> None:
        """Nothing was started."""

    def _batches_in_step(
        self, prompts: Sequence[Sequence[int]], own: list[int], n: int
    ) -> list[list[int]]:
        """`_batches`, and empty ones up to the count of the replicas that share the experts."""
        batches = self._batches(prompts, own, n)
        group = expert_sync_group(decoding=True)
        count = len(batches) if group is None else max_over_ranks(len(batches), group)
        return batches + [[] for _ in range(count - len(batches))]

    def _batches(self, prompts: Sequence[Sequence[int]], own: list[int], n: int) -> list[list[int]]:
        """Cuts prompt indices into batches of similar length."""
        room = max(1, self.max_running_samples // n)
        batches: list[list[int]] = []
        for index in sorted(own, key=lambda index: (len(prompts[index]), index)):
            if not batches or len(batches[-1]) == room:
                batches.append([])
            batches[-1].append(index)
        return batches

    def _decode(
        self, request: GenerationRequest, batch: list[int], counted: tuple[int, int]
    ) -> dict[int, list[Response]]:
        """Decodes the samples of the prompts at the places `batch`, which may be empty.

        `counted`: this replica's responses before the batch, and in all.
        """
        count, samples_per_prompt = request.sampling.max_new_tokens, request.sampling.n
        modules = self.policy.modules
        prompts = [request.prompts[place] for place in batch] or [[0]]
        decoder = CachedDecoder(modules, prompts, count)
        samples = [
            _PartialResponse(
                place,
                uniform_numbers(
                    request.seed, request.prompt_indices[place], sample, count
                ).tolist(),
            )
            for place in batch
            for sample in range(samples_per_prompt)
        ]
        logits = decoder.prefill()
        running = samples or [_PartialResponse(0, [0.0] * count, stopped=True)]
        # [prompts] -> [prompts * samples]: the cache of a prompt is repeated for its samples.
        first_rows = torch.arange(max(1, len(batch)), device=decoder.device)
        rows = first_rows.repeat_interleave(len(running) // len(first_rows))
        decoder.select(rows)
        logits = None if logits is None else logits[rows]
        in_lockstep = expert_sync_group(decoding=True)
        for position in range(count):
            tokens = self._draw(logits, running, position, request.sampling)
            unfinished = [row for row, partial in enumerate(running) if not partial.stopped]
            before, total = counted
            finished = before + len(samples) - len(unfinished)
            progress(finished, total, f"token {position + 1} of at most {count}")
            goes_on = bool(unfinished) and position < count - 1
            if not (goes_on if in_lockstep is None else any_rank(goes_on, in_lockstep)):
                break
            # Without an unfinished row, a finished one stays for the sake of the other replicas.
            needed = unfinished or [0]
            if len(needed) * 2 <= len(running):
                kept = on_device(torch.tensor(needed), decoder.device)
                decoder.select(kept)
                tokens = tokens[kept]
                running = [running[row] for row in needed]
            logits = decoder.advance(tokens)
        responses: dict[int, list[Response]] = {place: [] for place in batch}
        for partial in samples:
            reason: Literal["stop", "length"] = "stop" if partial.stopped else "length"
            responses[partial.prompt].append(
                Response(
                    tuple(partial.token_ids),
                    tuple(partial.log_probs),
                    reason,
                    weight_versions=(self.version, self.version),
                )
            )
        return responses

    def _draw(
        self,
        logits: torch.Tensor | None,
        running: list[_PartialResponse],
        position: int,
        sampling: SamplingParams,
    ) -> torch.Tensor:
        """Draws on the last stage, broadcasts to the others, appends to unfinished samples."""
        drawn = torch.empty(2, len(running), dtype=torch.float64, device=self._device())
        if logits is not None:
            numbers = [partial.uniform[position] for partial in running]
            uniform = on_device(torch.tensor(numbers, dtype=torch.float64), logits.device)
            vocabulary = logits[:, : self.policy.hf_config.vocab_size]
            tokens, log_probs = draw_tokens(vocabulary, uniform, sampling)
            # Token ids are far below 2^53, so float64 carries them exactly.
            drawn = torch.stack([tokens.double(), log_probs])
        if parallel_state.get_pipeline_model_parallel_world_size() > 1:
            source = parallel_state.get_pipeline_model_parallel_last_rank()
            dist.broadcast(
                drawn, src=source, group=parallel_state.get_pipeline_model_parallel_group()
            )
        token_ids, log_probs = drawn.tolist()
        for partial, token, log_prob in zip(running, map(int, token_ids), log_probs, strict=True):
            if not partial.stopped:
                partial.token_ids.append(token)
                partial.log_probs.append(log_prob)
                # What is not a number will not become one; the caller refuses the response.
                broken = not math.isfinite(log_prob)
                partial.stopped = broken or token in sampling.stop_token_ids
        return drawn[0].long()

    def _device(self) -> torch.device:
        return next(self.policy.modules[0].parameters()).device
