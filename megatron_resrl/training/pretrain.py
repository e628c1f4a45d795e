"""Pretraining: next-token prediction on token files, from fresh or given weights.

One step: read the next sequences of the blend, a share for each replica, and take one optimizer
step on the mean cross-entropy of all their targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy
import torch
from megatron.core import parallel_state

from megatron_resrl.config.schema_pretrain import PretrainRecipe
from megatron_resrl.corpus.blend import BlendedSequences
from megatron_resrl.data.batch_size import batch_size_after
from megatron_resrl.observe.phases import phase
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.platform.distributed import run_on_every_rank
from megatron_resrl.platform.phases import named_phase
from megatron_resrl.policy.batches import TokenBatch, padded, parts_in_order
from megatron_resrl.policy.policy import Policy
from megatron_resrl.training.identity import Identity, identity_of
from megatron_resrl.training.pretraining_data import PretrainingData, open_data
from megatron_resrl.training.run import Run
from megatron_resrl.training.session import Session, open_session
from megatron_resrl.training.stage import Stage, StageState
from megatron_resrl.training.starting_point import StartingPoint
from megatron_resrl.training.supervised import SupervisedBatch, mean_loss, supervised_step
from megatron_resrl.training.throughput import throughput_of
from megatron_resrl.weights.fresh import FreshWeights

PHASES = ("data", "update")
"""Parts of a step's time that are always reported."""


@dataclass
class Position:
    """How far a run has come in its data."""

    consumed: int = 0
    """Sequences of all steps so far, those that a rollback dropped included."""
    next: int = 0
    """Number of the next sequence; differs from `consumed` after a change of the data."""

    def advance(self, sequences: int) -> None:
        """Past the sequences of a step."""
        self.consumed += sequences
        self.next += sequences


def pretrain(recipe: PretrainRecipe) -> None:
    """Trains the model of a checked recipe; continues where an earlier run of it stopped.

    What it writes below `recipe.output_dir` is in docs/outputs.md.

    Raises:
        InputError: On all ranks: a file cannot be used, or the directory is another run's.
        NothingLeftToDo: All steps are done.
        DiskFull: A file could not be written.
        Interrupted: A signal asked the run to end before its last step; it is saved.
        NotFinite: Gradients were not finite, see `optimizer.non_finite`.
    """
    with open_session(recipe) as session:
        data, identity = run_on_every_rank(lambda: _read(recipe))
        start = session.find_start(identity)
        policy = _build_policy(recipe, start)
        session.attempts(
            start, lambda start: _train(recipe, session, data, identity, policy, start)
        )


def _train(
    recipe: PretrainRecipe,
    session: Session,
    data: PretrainingData,
    identity: Identity,
    policy: Policy,
    start: StartingPoint,
) -> None:
    resumed = session.resume(start, policy)
    position = Position()
    if resumed is not None:
        position.consumed = resumed.sampler["consumed_sequences"]
        position.next = 0 if start.new_data else resumed.sampler["next_sequence"]
    stage = _stage(recipe, policy, data, position)
    with session.run(stage, policy, identity, resumed) as run:
        _steps(recipe, policy, data.training, position, run, session.timers)


def _steps(
    recipe: PretrainRecipe,
    policy: Policy,
    sequences: BlendedSequences,
    position: Position,
    run: Run,
    timers: PhaseTimers,
) -> None:
    """The steps that are left."""
    settings, length = recipe.batch, recipe.data.sequence_length
    for step in run.steps():
        size = batch_size_after(
            position.consumed, settings.global_batch_size, settings.rampup_batch_size
        )
        numbers = range(position.next, position.next + size)
        with phase(timers, "data"):
            batch = _read_batch(recipe, sequences, numbers)
        outcome = supervised_step(policy, batch, settings.z_loss_coefficient, timers)
        position.advance(size)
        metrics = {
            "batch_size": float(size),
            "consumed_tokens": float(position.consumed * length),
            "data/epoch": sequences.epochs(position.next),
        }
        records = [{"first_sequence": numbers.start, "sequences": size}]
        run.finish_step(
            step, outcome.metrics | metrics, finite=outcome.finite, batch=partial(iter, records)
        )


def _stage(
    recipe: PretrainRecipe, policy: Policy, data: PretrainingData, position: Position
) -> Stage:
    length = recipe.data.sequence_length
    throughput = throughput_of(policy, length, recipe.logging.peak_tflops)

    def evaluate(step: int) -> dict[str, float]:
        metrics = {}
        for name, (sequences, count) in data.validation.items():
            batch = _read_batch(recipe, sequences, range(count))
            found = mean_loss(policy, [batch])
            metrics[f"eval/{name}/loss"] = found["loss"]
            metrics[f"eval/{name}/perplexity"] = found["perplexity"]
        return metrics

    def state() -> StageState:
        sampler = {"consumed_sequences": position.consumed, "next_sequence": position.next}
        return StageState(sampler, {})

    return Stage(
        headline="loss",
        state=state,
        phases=PHASES,
        rates=lambda metrics: throughput.of_step(metrics, length),
        evaluate=evaluate,
        evaluate_every=recipe.evaluation.every,
    )


def _read_batch(
    recipe: PretrainRecipe, sequences: BlendedSequences, numbers: range
) -> SupervisedBatch:
    size, mask = recipe.batch.micro_batch_size, recipe.data.document_mask
    return read_batch(sequences, numbers, size, document_mask=mask)


def read_batch(
    sequences: BlendedSequences, numbers: range, micro_batch_size: int, *, document_mask: bool
) -> SupervisedBatch:
    """This replica's share of a batch, sequences that are neighbours. Collective.

    Args:
        sequences: All there are.
        numbers: The sequences of the batch. Replicas get as many each, but for a rest that does not
            divide evenly.
        micro_batch_size: Sequences of a micro-batch.
        document_mask: Each document's part of a sequence becomes a sequence of its own.
    """
    sequences.prepare(numbers)
    replica = parallel_state.get_data_parallel_rank()
    replicas = parallel_state.get_data_parallel_world_size()
    first, last = (len(numbers) * each // replicas for each in (replica, replica + 1))
    return batch_of(
        [sequences.read(number) for number in numbers[first:last]],
        micro_batch_size,
        document_mask=document_mask,
    )


def batch_of(
    sequences: Sequence[Sequence[numpy.ndarray]], micro_batch_size: int, *, document_mask: bool
) -> SupervisedBatch:
    """Rows of a token batch, each with a prompt of one token, and their micro-batches.

    Args:
        sequences: The documents' parts of each sequence.
        micro_batch_size: Sequences of a micro-batch.
        document_mask: A row is a document's part. A part of one token predicts nothing and is left
            out. False: a row is a sequence.
    """
    rows: list[torch.Tensor] = []
    parts: list[list[int]] = []
    for group in parts_in_order(range(len(sequences)), micro_batch_size):
        first = len(rows)
        for number in group:
            pieces = sequences[number]
            if not document_mask:
                pieces = [numpy.concatenate(pieces)]
            rows += [torch.from_numpy(each.astype(numpy.int64)) for each in pieces if len(each) > 1]
        parts.append(list(range(first, len(rows))))
    targets = torch.tensor([len(row) - 1 for row in rows], dtype=torch.int64)
    tokens = TokenBatch(
        token_ids=padded(rows, torch.int64),
        prompt_lengths=torch.ones_like(targets),
        response_lengths=targets,
        loss_mask=padded([torch.ones(len(row) - 1) for row in rows], torch.bool),
    )
    return SupervisedBatch(tokens, parts)


def _read(recipe: PretrainRecipe) -> tuple[PretrainingData, Identity]:
    data = open_data(recipe.data, recipe.evaluation.sequences, recipe.seed)
    fresh = recipe.model.fresh_weights
    return data, identity_of(recipe, data.contents, fresh_weights=fresh)


@named_phase("model")
def _build_policy(recipe: PretrainRecipe, start: StartingPoint) -> Policy:
    model = recipe.model
    fresh = FreshWeights(recipe.seed, model.init_method_std) if model.fresh_weights else None
    return Policy.build(
        model,
        recipe.parallel,
        recipe.precision,
        optimizer=recipe.optimizer,
        total_updates=recipe.steps,
        sequence_packing=recipe.data.document_mask,
        load_weights=start.checkpoint is None,
        fresh=fresh,
    )
