"""Lazy likelihood displacement (LLD): what a step's updates do to correct responses.

Punishing what incorrect answers share with correct ones makes the likelihood of the latter fall.
"""

from __future__ import annotations

from megatron_resrl.diagnostics.observer import StepStart, StepState
from megatron_resrl.diagnostics.replicas import gather_from_replicas
from megatron_resrl.diagnostics.step_metrics import is_due
from megatron_resrl.observe.phases import phase
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.policy.results import OnFinalStates


class DisplacedLikelihood:
    """Scores the correct responses again after the updates; see `StepObserver`."""

    def __init__(self, every: int, timers: PhaseTimers) -> None:
        """
        Args:
            every: Steps between measurements; 0: never.
            timers: Phase "diagnosis" is timed here.
        """
        self._every = every
        self._timers = timers

    def before_scoring(self, start: StepStart) -> OnFinalStates | None:
        """Nothing."""
        return None

    def after_scoring(self, state: StepState) -> None:
        """Nothing."""

    def after_updates(self, state: StepState) -> dict[str, float]:
        """Measures. Collective.

        Returns:
            `lld/log_likelihood_change`: mean over correct responses of the change of
            log p(response), nats; `lld/log_prob_change`: the same per token;
            `lld/displaced_fraction`: share of correct responses whose likelihood fell. Nothing
            where no response is correct, or the step is not due.
        """
        if not is_due(state.step, self._every):
            return {}
        with phase(self._timers, "diagnosis"):
            rows = state.local.positive.nonzero().flatten()
            correct = state.local.select(rows)
            after = state.score_again(correct).log_probs
            change = after.double() - state.scores.log_probs[rows.to(after.device)].double()
            # [B, T] -> [B]: log p of a response is the sum over its generated tokens.
            changes = change.cpu().masked_fill(~correct.loss_mask, 0.0).sum(1).tolist()
            displaced = sum(value < 0 for value in changes)
            tokens = int(correct.loss_mask.sum())
            found = gather_from_replicas((sum(changes), displaced, len(changes), tokens))
        total, displaced, responses, tokens = (sum(column) for column in zip(*found, strict=True))
        if not responses:
            return {}
        return {
            "lld/log_likelihood_change": total / responses,
            "lld/log_prob_change": total / tokens,
            "lld/displaced_fraction": displaced / responses,
        }
