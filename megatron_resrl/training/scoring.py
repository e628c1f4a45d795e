"""Pass 1 of a step: what the policy thought of every token, and what each token weighs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist

from megatron_resrl.config.schema import Recipe
from megatron_resrl.errors import RunError
from megatron_resrl.observe.phases import phase
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.platform.distributed import device
from megatron_resrl.policy.batches import MicroBatch, TokenBatch, drawn_mask
from megatron_resrl.policy.finite import require_finite
from megatron_resrl.policy.policy import Policy, TappedStates
from megatron_resrl.rollout.collect import Sample
from megatron_resrl.subspace import GroupReport
from megatron_resrl.training.token_weights import WeighingPass, response_name


class StatesNotFinite(RunError):
    """Hidden states have no direction; raised on the ranks that share a group."""


FinalStates = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]
"""(hidden [n, H], sample [n], position [n]): the states that the output layer multiplies, and which
token of which sample each predicts, as an index into the step's samples; the indices on the CPU."""


@dataclass(frozen=True)
class Scored:
    """Per-token results for this replica's B samples.

    Matrices are [B, T] fp32, T the step's longest response; entries past a response's end, and of
    tokens that the policy did not draw, are unused.
    """

    log_probs: torch.Tensor
    """At the sampling temperature; meaningful on the last stage."""
    entropy: torch.Tensor
    """Nats; meaningful on the last stage."""
    token_weights: torch.Tensor
    """1 where nothing applies."""
    reports: dict[int, GroupReport] = field(default_factory=dict)
    """By number of the group, if weights were asked for."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the weighing."""

    def weighed_again(self, later: Scored) -> Scored:
        """These scores, with what is reported of a later weighing of some of the groups."""
        metrics = dict(self.metrics)
        for name, value in later.metrics.items():
            # Bytes are sent each time; other numbers are the largest.
            sent = name == "resrl/sent_bytes"
            metrics[name] = metrics[name] + value if sent else max(metrics[name], value)
        return replace(self, reports=self.reports | later.reports, metrics=metrics)


def score_samples(
    policy: Policy,
    samples: Sequence[Sample],
    mine: Sequence[int],
    recipe: Recipe,
    timers: PhaseTimers,
    *,
    weighing: WeighingPass | None = None,
    on_final_states: FinalStates | None = None,
) -> Scored:
    """Runs the forward-only pass over this replica's samples, streaming groups into weights.

    Args:
        policy: Weights are read only.
        samples: Of the step.
        mine: Indices of this replica's samples.
        recipe: Micro-batch size, temperature and tapped layer.
        timers: The subspace's time is taken out of the pass's.
        weighing: Weighs the tokens of these samples; None: all weigh 1.
        on_final_states: Called on the last stage for each micro-batch, under context parallelism
            with each rank's own tokens.

    Raises:
        LogitsNotFinite: On all ranks, if a log-probability is not a number.
        StatesNotFinite: A tapped state is not.
    """
    order = list(mine) if weighing is None else weighing.order
    sample_of = torch.tensor(order, dtype=torch.int64)

    def on_hidden_states(states: TappedStates, batch: MicroBatch) -> None:
        with phase(timers, "subspace"):
            weighing.on_hidden_states(states, batch)

    def final_states(hidden: torch.Tensor, batch: MicroBatch) -> None:
        on_final_states(hidden, sample_of[batch.host.sequence_index], batch.host.response_position)

    micro_batches = policy.micro_batches(
        TokenBatch.from_sequences([samples[index].tokens for index in order]),
        recipe.algorithm.micro_batch_size,
    )
    try:
        scores = policy.score(
            micro_batches,
            temperature=recipe.rollout.temperature,
            on_hidden_states=on_hidden_states if weighing else None,
            layer=recipe.resrl.layer,
            on_final_states=final_states if on_final_states else None,
        )
    except FloatingPointError as error:
        raise StatesNotFinite(
            f"scoring: {error}, so that the model's logits are not finite; model.path = "
            f"{recipe.model.path!r} has to be a model without damage, or its weights grew too "
            "large in training: lower optimizer.lr or go back to an older checkpoint"
        ) from error
    longest = max(len(sample.response.token_ids) for sample in samples)
    log_probs, entropy = torch.zeros(2, len(mine), longest, device=device())
    row_of = {index: row for row, index in enumerate(mine)}
    rows = torch.tensor([row_of[index] for index in order], dtype=torch.int64, device=device())
    for batch, score in zip(micro_batches, scores, strict=False):
        place = rows[batch.sequence_index], batch.response_position
        log_probs[place] = score.log_probs
        entropy[place] = score.entropy
    pieces = policy.context_parallel_group
    if dist.get_world_size(pieces) > 1:
        # Each context-parallel rank has the tokens of its pieces; the rest are zeros.
        dist.all_reduce(log_probs, group=pieces)
        dist.all_reduce(entropy, group=pieces)
    drawn = drawn_mask([samples[index].tokens for index in mine], longest).to(device())
    require_finite(
        log_probs,
        drawn,
        lambda row: response_name(samples, mine[row]),
        policy,
        recipe.model.path,
        phase="scoring",
    )
    if weighing is None:
        return Scored(log_probs, entropy, torch.ones_like(log_probs))
    weighed = weighing.finish()
    return Scored(log_probs, entropy, weighed.weights, weighed.reports, weighed.metrics)
