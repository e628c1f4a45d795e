"""Hidden states of the scoring pass -> one weight per response token, in any layout.

Glue between samples, policy and `subspace`: which tokens take part, which ranks share them, which
method exchanges them, and in which order responses have to pass.

Shapes: B responses of the pool (what one set of ranks shares), T longest response of the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_resrl.config.schema import Recipe
from megatron_resrl.data.think import think_mask
from megatron_resrl.platform.distributed import broadcast_object, device
from megatron_resrl.policy.batches import MicroBatch, TokenBatch, drawn_mask
from megatron_resrl.policy.policy import Policy, TappedStates
from megatron_resrl.rollout.collect import Sample
from megatron_resrl.subspace import (
    GroupPlan,
    GroupReport,
    SubspaceSettings,
    TokenRanks,
    TokenWeightStream,
    automatic_method,
    make_plan,
    sampling_key,
)


@dataclass(frozen=True)
class WeighedTokens:
    """What a pass made of its samples, on every rank."""

    weights: torch.Tensor
    """[mine, T] fp32 on the device, 1 where nothing applies, 0 on masked thoughts of wrong
    responses."""
    reports: dict[int, GroupReport]
    """Of the groups of the pool, by number."""
    metrics: dict[str, float]
    """Bytes and memory of the pass on this replica's first rank of the tapped stage."""


class TokenWeigher:
    """Weighs the tokens of a run's scoring passes.

    Attributes:
        method: `rows` or `gram`.
        ranks: Who shares the tokens of a pool with this rank.
    """

    def __init__(
        self,
        policy: Policy,
        recipe: Recipe,
        *,
        think_markers: tuple[int, int] | None = None,
    ) -> None:
        """
        Args:
            policy: Whose hidden states are read.
            recipe: Of the run.
            think_markers: Token ids between which responses think, if thinking is masked.
        """
        self.policy = policy
        self.recipe = recipe
        self.settings = recipe.resrl
        self.think_markers = think_markers
        self.method = self.settings.subspace_method
        if self.method == "auto":
            # One wrong response at least, or the group is skipped.
            longest = (recipe.rollout.group_size - 1) * recipe.rollout.max_response_length
            tokens = min(self.settings.max_positive_tokens, longest)
            self.method = automatic_method(tokens, policy.config.hidden_size)
        self.ranks = _token_ranks(policy)
        self.holds_tap = policy.holds_tap(self.settings.layer)

    def begin(
        self,
        samples: Sequence[Sample],
        mini_batch: Sequence[int],
        mine: Sequence[int],
        positive: torch.Tensor,
        step: int,
        loss_shares: torch.Tensor | None = None,
    ) -> WeighingPass:
        """Plans a pass.

        Args:
            samples: Of the step.
            mini_batch: Indices of the samples of all replicas whose tokens are wanted.
            mine: Those of this replica.
            positive: [samples] bool on the CPU: spans the subspace (correct) rather than being
                weighed (wrong).
            step: A key of random choices.
            loss_shares: [samples] float64 on the CPU: what each token of a response counts in the
                loss, which controls have to match; None: all count alike.
        """
        pool = list(mine)
        counted, thought = self._token_masks(samples, pool)
        numbers = self._numbers()
        group = torch.tensor([samples[index].group for index in pool])
        plan = make_plan(
            counted,
            positive[pool],
            group,
            numbers,
            key=lambda number: sampling_key(self.recipe.seed, step, number),
            ranks=self.ranks.size,
            window_rows=self.settings.window_tokens,
            window_groups=self._matrices() if self.method == "gram" else None,
            share_B=None if loss_shares is None else loss_shares[pool],
        )
        unpunished = thought & ~positive[pool].unsqueeze(1)
        return WeighingPass(self, plan, numbers, samples, pool, mine, unpunished)

    def _matrices(self) -> int:
        """Gram matrices of a window that a rank solves: one, or more where it may hold more."""
        tokens = self.settings.window_tokens or 0
        return max(1, tokens // self.settings.max_positive_tokens)

    def _numbers(self) -> SubspaceSettings:
        return SubspaceSettings(
            rank=self.settings.rank,
            max_positive_tokens=self.settings.max_positive_tokens,
            quantiles=self.settings.quantiles,
            floor=self.settings.floor,
            weights=self.settings.weights,
        )

    def _token_masks(
        self, samples: Sequence[Sample], pool: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, T] bool each: tokens that take part, and masked thoughts."""
        longest = max(len(sample.response.token_ids) for sample in samples)
        sequences = [samples[index].tokens for index in pool]
        drawn = drawn_mask(sequences, longest)
        drawn[[samples[index].masked for index in pool]] = False  # Neither right nor wrong.
        thought = torch.zeros_like(drawn)
        if self.think_markers is not None:
            batch = TokenBatch.from_sequences(sequences)
            thought = think_mask(
                batch.token_ids,
                batch.prompt_lengths,
                batch.response_lengths,
                self.think_markers,
                longest,
            )
        return drawn & ~thought, thought


class WeighingPass:
    """One pass: hand `on_hidden_states` to `Policy.score`, then `finish`.

    Attributes:
        order: Indices of this replica's samples, in the order in which they have to pass.
    """

    def __init__(
        self,
        weigher: TokenWeigher,
        plan: GroupPlan,
        numbers: SubspaceSettings,
        samples: Sequence[Sample],
        pool: Sequence[int],
        mine: Sequence[int],
        unpunished: torch.Tensor,
    ) -> None:
        """See `TokenWeigher.begin`."""
        row_of = {index: row for row, index in enumerate(pool)}
        own = {row_of[index] for index in mine}
        self._rows = [row for row in plan.order if row in own]
        self.order = [pool[row] for row in self._rows]
        self._mine = [row_of[index] for index in mine]
        self._groups = plan.numbers
        self._unpunished = unpunished
        self._weigher = weigher
        self._sent_before = weigher.ranks.sent_bytes
        self._stream: TokenWeightStream | None = None
        if weigher.holds_tap:
            layer = weigher.settings.layer
            self._stream = TokenWeightStream(
                plan,
                numbers,
                method=weigher.method,
                device=device(),
                order=self._rows,
                ranks=weigher.ranks,
                name=lambda row: (
                    f"{response_name(samples, pool[row])}, tapped at resrl.layer {layer}"
                ),
            )

    def on_hidden_states(self, states: TappedStates, batch: MicroBatch) -> None:
        """Takes one micro-batch; its sequences are `order`, one after the other."""
        rows = torch.tensor(self._rows, dtype=torch.int64)
        self._stream.add(
            states.hidden,
            rows[batch.host.sequence_index[states.token]],
            batch.host.response_position[states.token],
            [self._rows[sequence] for sequence in batch.sequences],
        )

    def finish(self) -> WeighedTokens:
        """Gives the result to all stages. Collective over the pipeline."""
        weights = torch.empty(self._unpunished.shape, device=device())
        found: tuple[dict[int, GroupReport], dict[str, float]] | None = None
        if self._stream is not None:
            reports = dict(zip(self._groups, self._stream.finish(), strict=True))
            found = reports, self._metrics()
            weights = self._stream.weights.masked_fill(self._unpunished.to(device()), 0.0)
        group = parallel_state.get_pipeline_model_parallel_group()
        if dist.get_world_size(group) > 1:
            stage = self._weigher.policy.tap_stage(self._weigher.settings.layer)
            source = dist.get_global_rank(group, stage)
            dist.broadcast(weights, src=source, group=group)
            found = broadcast_object(found, source, group)
        return WeighedTokens(weights[self._mine], *found)

    def _metrics(self) -> dict[str, float]:
        sent = self._weigher.ranks.sent_bytes - self._sent_before
        return {
            "resrl/peak_bytes": float(self._stream.peak_bytes),
            "resrl/sent_bytes": float(sent),
            "resrl/method_is_gram": float(self._weigher.method == "gram"),
        }


def _token_ranks(policy: Policy) -> TokenRanks:
    """The ranks of this stage that tap tokens of the same groups.

    Tensor-parallel ranks tap slices of each sequence under sequence parallelism, else copies;
    context-parallel ranks tap pieces; a group is whole within a data-parallel replica.
    """
    group = parallel_state.get_tensor_and_context_parallel_group()
    size = policy.config.tensor_model_parallel_size
    if policy.config.sequence_parallel or size == 1:
        return TokenRanks(group)
    return TokenRanks(group, copies=size, copy=parallel_state.get_tensor_model_parallel_rank())


def response_name(samples: Sequence[Sample], index: int) -> str:
    """How messages name a sample: by its place in its group, and the record of its prompt."""
    sample = samples[index]
    first = next(place for place, other in enumerate(samples) if other.group == sample.group)
    return f"response {index - first} to prompt {sample.prompt.record.index}"
