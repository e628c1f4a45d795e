"""A step whose update is its scoring pass, too: one forward pass instead of two.

With one update per step the policy that is scored is the policy that is updated: the old
log-probabilities are the update's own, and every ratio is 1. Weights from hidden states are made
between a micro-batch's forward and its backward, because correct responses pass before the
incorrect ones of their group, and those together.

Shapes: B responses of this replica, T tokens of the step's longest response, n tokens of a
micro-batch.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_resrl.algorithms import Algorithm, correction_factors, log_ratios
from megatron_resrl.config.schema import CorrectionConfig, Recipe
from megatron_resrl.config.single_pass import single_pass_conflict
from megatron_resrl.diagnostics.observer import StepObservers, StepStart, StepState
from megatron_resrl.errors import InputError
from megatron_resrl.observe.phases import phase
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.platform.distributed import device, on_device
from megatron_resrl.platform.phases import progress
from megatron_resrl.policy.batches import MicroBatch
from megatron_resrl.policy.hidden_states import OnHiddenStates
from megatron_resrl.policy.policy import Policy
from megatron_resrl.policy.results import TappedStates, TokenScores
from megatron_resrl.policy.token_budget import MicroBatchLimit
from megatron_resrl.rollout.batch import TrainingBatch
from megatron_resrl.token_weighting.protocol import (
    SinglePassWeighting,
    TokenWeighting,
    UpdatePass,
)
from megatron_resrl.training.importance import ImportanceWeights, importance_weights
from megatron_resrl.training.scoring import (
    PassSettings,
    Scores,
    named_states_not_finite,
    observe_states,
    score_batch,
)
from megatron_resrl.training.updating import (
    ResponseTargets,
    TokenTargets,
    loss_of_tokens,
    sums_of,
)

logger = logging.getLogger(__name__)


def takes_single_pass(weighting: TokenWeighting, recipe: Recipe) -> bool:
    """Whether the steps of a run take one pass, as `algorithm.single_pass` says; rank 0 logs it.

    Args:
        weighting: Of the run.
        recipe: Of the run.

    Raises:
        InputError: It is `always`, and something stands in the way.
    """
    asked = recipe.algorithm.single_pass
    if asked == "never":
        return False
    obstacle = _obstacle(weighting, recipe)
    if obstacle is None:
        return True
    if asked == "always":
        raise InputError(
            f"algorithm.single_pass = 'always', but {obstacle}; with `auto` a scoring pass is made"
        )
    if dist.get_rank() == 0:
        logger.info("every step makes a scoring pass before its updates: %s", obstacle)
    return False


def _obstacle(weighting: TokenWeighting, recipe: Recipe) -> str | None:
    """Why every step of a run needs a scoring pass of its own; None: it does not."""
    conflict = single_pass_conflict(
        recipe.algorithm, recipe.correction, recipe.model, recipe.parallel
    )
    if conflict is not None:
        return conflict.reason
    if not isinstance(weighting, SinglePassWeighting):
        return f"the token weighting {type(weighting).__name__} needs one"
    return weighting.obstacle()


def update_in_single_pass(
    start: StepStart,
    algorithm: Algorithm,
    correction: CorrectionConfig,
    passes: PassSettings,
    observers: StepObservers,
    timers: PhaseTimers,
) -> tuple[StepState, dict[str, float]]:
    """Scores and updates. Collective.

    Only groups that no response of has a loss, and those whose weights depend on more than a
    micro-batch, are scored without gradient first.

    Args:
        start: Of the step; its weighting is a `SinglePassWeighting`.
        algorithm: Its loss.
        correction: Importance weights, and the gates.
        passes: Micro-batches and temperature.
        observers: See the scores and weights before the optimizer's step.
        timers: Phases are timed here.

    Returns:
        The step with its update, and metrics of the mismatch and `step/passes`.

    Raises:
        MismatchTooLarge: On all ranks; no weight has changed.
        LogitsNotFinite, StatesNotFinite: See `score_batch`.
    """
    policy, local = start.policy, start.local
    assert isinstance(start.weighting, SinglePassWeighting)
    limit = passes.limit(policy)
    first = _scored_first(start.weighting, start.batch, limit)
    observed = start.weighting.begin_update(local, start.step, first, limit)
    watch = observers.before_scoring(start)
    scores = Scores.none(local)
    if first:
        with phase(timers, "scoring"):
            scores = score_batch(
                policy, local, passes, timers, weighting=observed, on_final_states=watch
            )
    scored = [row for row, group in enumerate(local.group_ids.tolist()) if group in first]
    again = [row for row in scored if local.has_loss[row]]
    with phase(timers, "update"):
        progress(1, 1)
        lengths = limit.lengths_of(local)
        later = limit.cut([(row,) for row in again], lengths)
        parts = [*observed.parts, *later]
        micro_batches = policy.micro_batches_of(local, parts)
        update = _Update(algorithm, policy, local, observed, correction, start.streams)
        settled: list[tuple[StepState, ImportanceWeights]] = []

        def before_step(collected: list[Any]) -> None:
            # The gate of `correction.stop_kl` and what observers see come before the step.
            with phase(timers, "scoring"):
                seen = [one for one, _ in collected]
                found = Scores.of(local, micro_batches, seen, policy).replaced(scored, scores)
                found.require_finite(local, policy, passes.model_path)
                importance = importance_weights(local, found.log_probs, correction, start.step)
                weights = observed.finish()
            state = StepState(**vars(start), scores=found, token_weights=weights)
            observers.after_scoring(state)
            settled.append((state, importance))

        with named_states_not_finite(passes.model_path):
            result = policy.update(
                micro_batches,
                update.loss,
                temperature=passes.temperature,
                entropy_gradient=algorithm.needs_entropy_gradient,
                on_hidden_states=_observer(observed, scored, timers),
                layer=-2 if observed.layer is None else observed.layer,
                on_final_states=watch,
                before_step=before_step,
            )
    [(state, importance)] = settled
    sums = [one for _, one in result.collected]
    state.updates.append(dataclasses.replace(result, collected=sums))
    state.sums.append(sums_of(sums))
    state.fed.append(limit.fed(parts, lengths))
    return state, importance.metrics | {"step/passes": _passes(start.batch, first)}


def _scored_first(
    weighting: SinglePassWeighting, batch: TrainingBatch, limit: MicroBatchLimit
) -> set[int]:
    """Groups that are scored without gradient, of all replicas: each decides alike."""
    without_loss = set(batch.group_ids.tolist()) - set(batch.group_ids[batch.has_loss].tolist())
    return without_loss | weighting.scored_first(batch, limit)


def _passes(batch: TrainingBatch, first: set[int]) -> float:
    """Mean forward passes of a response that has a loss, over all replicas."""
    groups = batch.group_ids[batch.has_loss].tolist()
    return 1.0 + sum(group in first for group in groups) / len(groups)


def _observer(
    observed: UpdatePass, scored: Sequence[int], timers: PhaseTimers
) -> OnHiddenStates | None:
    """Shows the weighting the states of the responses that it has not seen; None: it needs none."""
    if observed.layer is None:
        return None
    known = set(scored)

    def observe(states: TappedStates, micro_batch: MicroBatch) -> None:
        if not known.issuperset(micro_batch.sequences):
            observe_states(observed, timers, states, micro_batch)

    return observe


class _Update:
    """The loss of an update that computes its own old log-probabilities."""

    def __init__(
        self,
        algorithm: Algorithm,
        policy: Policy,
        batch: TrainingBatch,
        observed: UpdatePass,
        correction: CorrectionConfig,
        streams: Mapping[str, Tensor],
    ) -> None:
        self._observed = observed
        self._streams = streams
        self._correction = correction
        self._has_loss = batch.has_loss
        self._targets = ResponseTargets.of_responses(batch).to(device())
        self._loss = functools.partial(
            loss_of_tokens, algorithm, policy, self._targets, self._of_tokens
        )

    def loss(
        self, log_probs: Tensor, entropy: Tensor, batch: MicroBatch
    ) -> tuple[Tensor, tuple[TokenScores, Any]]:
        """A `LossFunction`, which also collects the scores."""
        seen = TokenScores(log_probs.detach(), entropy.detach())
        # Responses without a loss pass for their states and scores only.
        kept = self._has_loss[batch.host.sequence_index]
        if not kept.all():
            index = on_device(kept.nonzero().flatten(), log_probs.device)
            log_probs, entropy, batch = log_probs[index], entropy[index], batch.of_tokens(index)
        loss, collected = self._loss(log_probs, entropy, batch)
        return loss, (seen, collected)

    def _of_tokens(self, batch: MicroBatch, log_probs: Tensor, entropy: Tensor) -> TokenTargets:
        old_log_probs = log_probs.detach()
        token = batch.sequence_index, batch.response_position
        streams = {name: stream[token] for name, stream in self._streams.items()}
        return TokenTargets(
            old_log_probs=old_log_probs,
            token_weights=self._observed.weights_of(batch),
            importance_weights=self._importance(batch, old_log_probs),
            extra={"old_entropy": entropy.detach(), **streams},
        )

    def _importance(self, batch: MicroBatch, log_probs: Tensor) -> Tensor:
        """[n] factors that depend on each token alone."""
        if self._correction.method == "none":
            return torch.ones_like(log_probs)
        engine = self._targets.rollout_log_probs[batch.sequence_index, batch.response_position]
        every = torch.ones_like(log_probs, dtype=torch.bool)[None]
        return correction_factors(
            log_ratios(log_probs[None], engine[None], every),
            every,
            method=self._correction.method,
            cap=self._correction.cap,
            band=self._correction.band,
        ).factors[0]
