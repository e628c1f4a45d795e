"""What a long run watches in itself, and what it does about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from megatron_resrl.config.ranges import BELOW_ONE, above, at_least

Reaction = Literal["off", "warn", "rollback"]
"""`warn`: a line in the log; `rollback`: also go back to a checkpoint and on with other data."""


@dataclass(frozen=True)
class HealthConfig:
    """Spikes, collapses and slow ranks: when to warn, and when to go back to a checkpoint."""

    loss_spike: Reaction = "warn"
    """A loss that lies `deviations` above the median of the last `window` steps. `rollback`: go
    back to the newest checkpoint before it, and on with the data behind those of this step."""
    grad_norm_spike: Reaction = "warn"
    """The same for the norm of the gradient."""
    reward_collapse: Reaction = "warn"
    """Reinforcement learning: the verifier's score over `collapse_steps` steps falls below
    `reward_share` of what it was in the `window` steps before."""
    entropy_collapse: Reaction = "warn"
    """Reinforcement learning: the policy's entropy over `collapse_steps` steps falls below
    `entropy_share` of what it was in the run's first `window` steps."""
    window: Annotated[int, at_least(4)] = 50
    """Steps that a value is compared with; after half of them the comparisons begin."""
    deviations: Annotated[float, above(0)] = 10.0
    """Standard deviations, estimated from the median absolute deviation and taken to be at least 1%
    of the median, above which a value is a spike."""
    reward_share: Annotated[float, BELOW_ONE] = 0.5
    """A score below this share of the earlier one, and outside its usual spread, has collapsed."""
    entropy_share: Annotated[float, BELOW_ONE] = 0.1
    """An entropy below this share of the first one has collapsed."""
    collapse_steps: Annotated[int, at_least(1)] = 5
    """Steps whose median must have fallen."""
    max_rollbacks: Annotated[int, at_least(1)] = 3
    """A run that would go back once more ends instead."""
    straggler_ratio: Annotated[float | None, above(1)] = 1.5
    """A rank is slow if a phase takes it this many times as long as the median rank, waits for
    other ranks not counted; null: ranks are not compared."""
    straggler_steps: Annotated[int, at_least(1)] = 5
    """Steps in a row in which the same rank must be slow before a warning names it."""
