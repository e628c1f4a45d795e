"""What the passes of a policy give, and what they call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from megatron_resrl.policy.batches import MicroBatch


@dataclass(frozen=True)
class TokenScores:
    """What the scoring pass knows of one micro-batch's n response tokens; last stage only.

    Under context parallelism, of this rank's n.
    """

    log_probs: torch.Tensor
    """[n] fp32."""
    entropy: torch.Tensor
    """[n] fp32, nats."""


@dataclass(frozen=True)
class TappedStates:
    """Hidden states of the response tokens whose predicting state this rank holds.

    All of the micro-batch's n tokens, or under sequence parallelism those of this rank's slice.
    """

    hidden: torch.Tensor
    """[m, H]: the state that predicts each token."""
    token: torch.Tensor
    """[m] int64 on the CPU: which of the micro-batch's n response tokens."""


@dataclass(frozen=True)
class UpdateResult:
    """Outcome of one optimizer step, the same on all ranks except for `collected`."""

    applied: bool
    """False: a gradient was not finite and every rank skipped the step."""
    grad_norm: float
    """Global norm before clipping; NaN for a skipped step."""
    learning_rate: float
    """Of this step."""
    collected: list[Any]
    """What the loss function collected per micro-batch; empty but on the last stage."""
    balancing_loss: float | None = None
    """Of experts, without its coefficient, mean over sparse layers and micro-batches; None: the
    loss has no such term."""


LossFunction = Callable[[torch.Tensor, torch.Tensor, MicroBatch], tuple[torch.Tensor, Any]]
"""(log_probs [n], entropy [n], micro-batch) -> this micro-batch's share of the loss, and
whatever the caller collects."""

OnFinalStates = Callable[[torch.Tensor, MicroBatch], None]
"""(hidden [n, H], micro-batch): the states that the output layer multiplies, one per response
token of the micro-batch on this rank."""

BeforeStep = Callable[[list[Any]], None]
"""Takes what the loss function collected, when all gradients are there."""
