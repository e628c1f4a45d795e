"""Observers of a step: they see what it works out, and change nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from megatron_resrl.algorithms import LossSums
from megatron_resrl.policy.batches import MicroBatch
from megatron_resrl.policy.policy import Policy
from megatron_resrl.policy.results import OnFinalStates, UpdateResult
from megatron_resrl.policy.token_budget import Fed
from megatron_resrl.rollout.batch import TrainingBatch
from megatron_resrl.token_weighting.protocol import TokenWeighting, TokenWeights


class ScoresLike(Protocol):
    """`training.scoring.Scores`: [B, T] fp32 each, meaningful on the last stage."""

    @property
    def log_probs(self) -> Tensor:
        """At the sampling temperature."""

    @property
    def entropy(self) -> Tensor:
        """Nats."""


@dataclass
class StepStart:
    """What a step knows before it scores."""

    step: int
    policy: Policy
    weighting: TokenWeighting
    batch: TrainingBatch
    """All responses of the step, the same on all ranks."""
    local: TrainingBatch
    """Those of this replica."""
    score_again: Callable[[TrainingBatch], ScoresLike]
    """Scores of a selection of `local` under the policy as it is now. Collective."""
    streams: Mapping[str, Tensor]
    """[B, T] fp32 log-probabilities of `local` under other models, by their names in
    `LossInputs.extra`; meaningful on the last stage."""


@dataclass
class StepState(StepStart):
    """What a step knows once it has scored; `rl_step` adds its updates as they are made.

    Shapes: B responses of this replica, T tokens of the step's longest response.
    """

    scores: ScoresLike
    """Before the first update."""
    token_weights: TokenWeights
    """Of the last pass over each group."""
    updates: list[UpdateResult] = field(default_factory=list)
    sums: list[LossSums] = field(default_factory=list)
    """Of each update on this rank; empty but on the last stage."""
    fed: list[Fed] = field(default_factory=list)
    """Of each update of this replica."""
    left_out: list[list[int]] = field(default_factory=list)
    """Rows of `batch` of each update that was left out: no response had a loss."""


class StepObserver(Protocol):
    """Every rank has the same observers, in the same order; their methods may be collective."""

    def before_scoring(self, start: StepStart) -> OnFinalStates | None:
        """May return what the scoring pass shows the final hidden states to (`OnFinalStates`)."""
        ...

    def after_scoring(self, state: StepState) -> None:
        """The scores and weights are there; no weight of the policy has changed."""
        ...

    def after_updates(self, state: StepState) -> dict[str, float]:
        """Returns metrics, the same on all ranks."""
        ...


class StepObservers:
    """Several observers as one."""

    def __init__(self, observers: Sequence[StepObserver]) -> None:
        """
        Args:
            observers: In the order in which they are asked.
        """
        self._observers = tuple(observers)

    def before_scoring(self, start: StepStart) -> OnFinalStates | None:
        """See `StepObserver.before_scoring`."""
        found = [observer.before_scoring(start) for observer in self._observers]
        listeners = [each for each in found if each is not None]
        if not listeners:
            return None

        def on_final_states(hidden: Tensor, micro_batch: MicroBatch) -> None:
            for listener in listeners:
                listener(hidden, micro_batch)

        return on_final_states

    def after_scoring(self, state: StepState) -> None:
        """See `StepObserver.after_scoring`."""
        for observer in self._observers:
            observer.after_scoring(state)

    def after_updates(self, state: StepState) -> dict[str, float]:
        """The metrics of all observers; see `StepObserver.after_updates`."""
        metrics: dict[str, float] = {}
        for observer in self._observers:
            metrics |= observer.after_updates(state)
        return metrics
