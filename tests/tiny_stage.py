"""A stage without rollouts: next-token cross-entropy on a few sequences of a tiny model.

It shows what a stage needs: its settings, an identity, a policy, a session and a loop.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from megatron_resrl.config.schema import RunSettings
from megatron_resrl.data.sampler import PromptSampler
from megatron_resrl.observe.phases import phase
from megatron_resrl.policy.batches import MicroBatch, TokenBatch, TokenSequence
from megatron_resrl.policy.policy import Policy
from megatron_resrl.training.identity import Identity, identity_of
from megatron_resrl.training.session import Session, open_session
from megatron_resrl.training.stage import Stage, StageState
from megatron_resrl.training.starting_point import StartingPoint

BATCH = 2


@dataclass(frozen=True)
class NextTokenSettings(RunSettings):
    """The settings of every stage, and this one's data."""

    sequences: tuple[tuple[int, ...], ...] = ()


def train(settings: NextTokenSettings) -> None:
    """Trains, and continues where an earlier run stopped; for one rank."""
    sequences = [TokenSequence(each[:1], each[1:]) for each in settings.sequences]
    data = TokenBatch.from_sequences(sequences)
    digest = hashlib.sha256(repr(settings.sequences).encode()).hexdigest()
    with open_session(settings) as session:
        identity = identity_of(settings, {"data: sequences": digest})
        start = session.find_start(identity)
        policy = Policy.build(
            settings.model,
            settings.parallel,
            settings.precision,
            optimizer=settings.optimizer,
            total_updates=settings.steps,
        )
        session.attempts(
            start, lambda start: _train(settings, session, data, identity, policy, start)
        )


def _train(
    settings: NextTokenSettings,
    session: Session,
    data: TokenBatch,
    identity: Identity,
    policy: Policy,
    start: StartingPoint,
) -> None:
    sampler = PromptSampler(len(data), BATCH, settings.seed)
    resumed = session.resume(start, policy)
    if resumed is not None:
        sampler.load_state_dict(resumed.sampler)
    stage = Stage("loss", lambda: StageState(sampler.state_dict(), {}), phases=("update",))
    with session.run(stage, policy, identity, resumed) as run:
        for step in run.steps():
            batch = data.select(sampler.next_batch())
            tokens = int(batch.loss_mask.sum())

            def cross_entropy(
                log_probs: torch.Tensor, _: torch.Tensor, __: MicroBatch, tokens: int = tokens
            ) -> tuple[torch.Tensor, float]:
                loss = -log_probs.sum() / tokens
                return loss, loss.item()

            with phase(session.timers, "update"):
                update = policy.update(policy.micro_batches(batch, 1), cross_entropy)
            metrics = {"loss": sum(update.collected), "grad_norm": update.grad_norm}
            run.finish_step(step, metrics, finite=update.applied)
