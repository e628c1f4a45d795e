"""What a token weighting says, and what a scoring pass and a step ask of it.

A step plans a pass, hands it to the scoring pass, which shows it the hidden states of every
micro-batch, and asks for the weights. A new weighting is one file and one line in `registry.py`;
`tokenwise.py` has what one needs whose weights depend on the token's own state alone.

Shapes: B responses of this replica, T tokens of the step's longest response.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from megatron_resrl.policy.batches import MicroBatch
from megatron_resrl.policy.results import TappedStates
from megatron_resrl.policy.token_budget import MicroBatchLimit
from megatron_resrl.rollout.batch import TrainingBatch


@dataclass(frozen=True)
class TokenWeights:
    """What a pass made of its responses, the same on every rank of a replica."""

    weights: Tensor
    """[B, T] fp32 on the device, 1 where nothing applies."""
    reports: Mapping[int, Any] = field(default_factory=dict)
    """Group -> what `TokenWeighting.summarise` needs of it; pickled between ranks."""
    totals: Mapping[str, float] = field(default_factory=dict)
    """Metrics that add up over the passes of a step."""
    peaks: Mapping[str, float] = field(default_factory=dict)
    """Metrics of which the largest over the passes of a step counts."""

    def replaced(self, rows: Sequence[int], later: TokenWeights) -> TokenWeights:
        """With the weights of some rows, and the reports of their groups, from a later pass.

        Args:
            rows: Of these weights: those of the later pass, in order.
            later: From a pass over these rows alone.
        """
        weights = self.weights.clone()
        weights[list(rows)] = later.weights
        totals, peaks = dict(self.totals), dict(self.peaks)
        for name, value in later.totals.items():
            totals[name] = totals.get(name, 0.0) + value
        for name, value in later.peaks.items():
            peaks[name] = max(peaks.get(name, value), value)
        return replace(
            self,
            weights=weights,
            reports={**self.reports, **later.reports},
            totals=totals,
            peaks=peaks,
        )


class WeightingPass(Protocol):
    """One scoring pass over a replica's responses."""

    @property
    def layer(self) -> int | None:
        """Whose states are observed: an index into Hugging Face's `hidden_states`; None: none."""
        ...

    @property
    def order(self) -> Sequence[int]:
        """Rows of the batch in the order in which they have to be scored."""
        ...

    def observe(self, states: TappedStates, micro_batch: MicroBatch) -> None:
        """Takes the states of one micro-batch; called in order, on the ranks that have the layer.

        Args:
            states: Of the generated tokens whose states this rank has.
            micro_batch: Which tokens they are.
        """
        ...

    def finish(self) -> TokenWeights:
        """The weights, on all ranks of the replica. Collective; called once, after the pass."""
        ...


class UpdatePass(WeightingPass, Protocol):
    """A pass whose later part is an update: weights are there between forward and backward.

    The responses of `order` are scored first, without gradient. Those of `parts` are observed in
    the update itself.
    """

    @property
    def parts(self) -> Sequence[Sequence[int]]:
        """Rows of each micro-batch of the update whose states are observed, in order."""
        ...

    def weights_of(self, micro_batch: MicroBatch) -> Tensor:
        """[n] fp32 weights of a micro-batch's tokens, once it has been observed.

        Also those of a micro-batch of responses that were scored first.
        """
        ...


class TokenWeighting(Protocol):
    """Weighs the generated tokens of responses, from hidden states of the scoring pass."""

    def begin(self, batch: TrainingBatch, step: int) -> WeightingPass:
        """Plans a pass. Collective over a replica, though nothing needs to be exchanged.

        Args:
            batch: This replica's responses, whole groups.
            step: A key of random choices.
        """
        ...

    def summarise(self, reports: Sequence[Any], *, detailed: bool) -> dict[str, float]:
        """Metrics of a step from the reports of the groups of all replicas.

        Args:
            reports: Values of `TokenWeights.reports`; may be empty.
            detailed: The step is one whose diagnosis is asked for.
        """
        ...


@runtime_checkable
class SinglePassWeighting(TokenWeighting, Protocol):
    """A weighting that needs no scoring pass before an update."""

    def obstacle(self) -> str | None:
        """Why this run needs a scoring pass all the same; None: it does not."""
        ...

    def scored_first(self, batch: TrainingBatch, limit: MicroBatchLimit) -> set[int]:
        """Ids of groups that need one: their weights depend on more than a micro-batch.

        Args:
            batch: All responses of the step, the same on all ranks.
            limit: Of a micro-batch.
        """
        ...

    def begin_update(
        self, batch: TrainingBatch, step: int, first: Collection[int], limit: MicroBatchLimit
    ) -> UpdatePass:
        """Plans a pass. Collective over a replica, though nothing needs to be exchanged.

        Args:
            batch: This replica's responses, whole groups.
            step: A key of random choices.
            first: Ids of the groups that are scored first.
            limit: Of a micro-batch.
        """
        ...
