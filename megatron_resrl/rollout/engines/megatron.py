"""The embedded engine: the policy decodes by itself, batched, with a key-value cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_resrl.platform.distributed import any_rank, gather_objects, largest
from megatron_resrl.platform.phases import progress
from megatron_resrl.policy.experts import lock_step_group
from megatron_resrl.policy.layer_spec import uses_transformer_engine
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.engine import (
    OnGroup,
    PendingRollout,
    Response,
    SamplingParams,
)
from megatron_resrl.rollout.engines.cached_decoder import CachedDecoder, whole_sequences
from megatron_resrl.rollout.sampling import draw_tokens, uniform_numbers


@dataclass
class _Growing:
    """A response being decoded."""

    prompt: int
    uniform: list[float]
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    stopped: bool = False


@dataclass(frozen=True)
class _NotYet:
    """Responses that are generated when they are asked for."""

    result: Callable[[], list[list[Response]]]


class MegatronEngine:
    """Samples with the trainer's own weights: no second copy, no transfer.

    Data-parallel replicas, and the context-parallel ranks of each, which all hold the whole model,
    share the prompts out. A prompt is read once for all its samples, and finished rows leave the
    batch when they are half of it. Replicas that share their experts make the same number of
    forward passes: one that is done goes on with a row that counts for nothing.
    """

    def __init__(self, policy: Policy, *, max_running_samples: int) -> None:
        """
        Args:
            policy: Decodes with its current weights at each call.
            max_running_samples: Rows decoded at once by one replica; bounds the cache.
        """
        self.policy = policy
        self.max_running_samples = max_running_samples
        self.version = 0

    def begin(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams,
        *,
        seed: Sequence[int],
        indices: Sequence[int] | None = None,
        on_group: OnGroup | None = None,
    ) -> PendingRollout:
        """See `RolloutEngine.begin`; decodes when the result is asked for."""
        return _NotYet(
            lambda: self.generate(prompts, sampling, seed=seed, indices=indices, on_group=on_group)
        )

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams,
        *,
        seed: Sequence[int],
        indices: Sequence[int] | None = None,
        on_group: OnGroup | None = None,
    ) -> list[list[Response]]:
        """See `RolloutEngine.generate`; all groups are finished together."""
        decoders = parallel_state.get_data_parallel_group(with_context_parallel=True)
        mine = list(range(decoders.rank(), len(prompts), decoders.size()))
        keys = range(len(prompts)) if indices is None else indices
        self.policy.eval()
        done: dict[int, list[Response]] = {}
        with whole_sequences(self.policy.modules):
            for batch in self._batches_in_step(prompts, mine, sampling.n):
                counted = (len(done) * sampling.n, len(mine) * sampling.n)
                done |= self._decode(prompts, batch, sampling, seed, keys, counted)
        for theirs in gather_objects(done, decoders):
            done |= theirs
        if on_group and dist.get_rank() == 0:
            for index in range(len(prompts)):
                on_group(index, done[index])
        return [done[index] for index in range(len(prompts))]

    def update_weights(self, version: int) -> dict[str, float]:
        """Nothing to move: the policy's own parameters decode."""
        self.version = version
        return {}

    def sleep(self) -> None:
        """Nothing to free: the caches of a rollout end with it."""

    def close(self) -> None:
        """Nothing was started."""

    def _batches_in_step(
        self, prompts: Sequence[Sequence[int]], mine: list[int], n: int
    ) -> list[list[int]]:
        """`_batches`, and empty ones up to the count of the replicas that share the experts."""
        batches = self._batches(prompts, mine, n)
        group = lock_step_group(decoding=True)
        count = len(batches) if group is None else largest(len(batches), group)
        return batches + [[] for _ in range(count - len(batches))]

    def _batches(
        self, prompts: Sequence[Sequence[int]], mine: list[int], n: int
    ) -> list[list[int]]:
        """Cuts prompt indices into batches of similar length.

        Transformer Engine's attention would ignore the mask that hides left padding, so with it
        only prompts of equal length share a batch.
        """
        equal_lengths = uses_transformer_engine()
        room = max(1, self.max_running_samples // n)
        batches: list[list[int]] = []
        for index in sorted(mine, key=lambda index: (len(prompts[index]), index)):
            full = not batches or len(batches[-1]) == room
            if full or (equal_lengths and len(prompts[batches[-1][0]]) != len(prompts[index])):
                batches.append([])
            batches[-1].append(index)
        return batches

    def _decode(
        self,
        prompts: Sequence[Sequence[int]],
        batch: list[int],
        sampling: SamplingParams,
        seed: Sequence[int],
        keys: Sequence[int],
        counted: tuple[int, int],
    ) -> dict[int, list[Response]]:
        """Decodes `sampling.n` responses for each prompt index of `batch`, which may be empty.

        `counted`: this replica's responses before the batch, and in all.
        """
        count = sampling.max_new_tokens
        modules = self.policy.modules
        decoder = CachedDecoder(modules, [prompts[index] for index in batch] or [[0]], count)
        samples = [
            _Growing(index, uniform_numbers(seed, keys[index], sample, count).tolist())
            for index in batch
            for sample in range(sampling.n)
        ]
        logits = decoder.prefill()
        running = samples or [_Growing(0, [0.0] * count, stopped=True)]
        first_rows = torch.arange(max(1, len(batch)), device=decoder.device)
        rows = first_rows.repeat_interleave(len(running) // len(first_rows))
        decoder.select(rows)
        logits = None if logits is None else logits[rows]
        together = lock_step_group(decoding=True)
        for position in range(count):
            tokens = self._draw(logits, running, position, sampling)
            unfinished = [row for row, growing in enumerate(running) if not growing.stopped]
            before, total = counted
            finished = before + len(samples) - len(unfinished)
            progress(finished, total, f"token {position + 1} of at most {count}")
            goes_on = bool(unfinished) and position < count - 1
            if not (goes_on if together is None else any_rank(goes_on, together)):
                break
            # Without an unfinished row, one goes on for the sake of the other replicas.
            needed = unfinished or [0]
            if len(needed) * 2 <= len(running):
                kept = torch.tensor(needed, device=decoder.device)
                decoder.select(kept)
                tokens = tokens[kept]
                running = [running[row] for row in needed]
            logits = decoder.advance(tokens)
        responses: dict[int, list[Response]] = {index: [] for index in batch}
        for growing in samples:
            reason = "stop" if growing.stopped else "length"
            responses[growing.prompt].append(
                Response(
                    tuple(growing.token_ids),
                    tuple(growing.log_probs),
                    reason,
                    weight_versions=(self.version, self.version),
                )
            )
        return responses

    def _draw(
        self,
        logits: torch.Tensor | None,
        running: list[_Growing],
        position: int,
        sampling: SamplingParams,
    ) -> torch.Tensor:
        """Draws on the last stage, tells the other stages, and appends to unfinished samples."""
        drawn = torch.empty(2, len(running), dtype=torch.float64, device=self._device())
        if logits is not None:
            uniform = torch.tensor(
                [growing.uniform[position] for growing in running],
                dtype=torch.float64,
                device=logits.device,
            )
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
        for growing, token, log_prob in zip(running, map(int, token_ids), log_probs, strict=True):
            if not growing.stopped:
                growing.token_ids.append(token)
                growing.log_probs.append(log_prob)
                # What is not a number will not become one; the caller refuses the response.
                broken = not math.isfinite(log_prob)
                growing.stopped = broken or token in sampling.stop_token_ids
        return drawn[0].long()

    def _device(self) -> torch.device:
        return next(self.policy.modules[0].parameters()).device
