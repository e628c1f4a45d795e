"""Supervised fine-tuning: the policy learns what the assistant says in conversations.

One step: a global batch of conversations, shared out over the replicas; the mean cross-entropy of
all tokens that the assistant wrote; one optimizer step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.distributed as dist

from megatron_resrl.config.schema_sft import SftBatchConfig, SftRecipe
from megatron_resrl.config.shared_prompts import Sharing
from megatron_resrl.data.fine_tuning import Example, FilePart, digest, put_together, read_part
from megatron_resrl.data.sampler import PromptSampler
from megatron_resrl.data.tokenizer import load_tokenizer
from megatron_resrl.errors import InputError
from megatron_resrl.platform.distributed import gather_objects, run_on_every_rank
from megatron_resrl.policy.model_config import read_hf_config
from megatron_resrl.policy.policy import Policy
from megatron_resrl.training.identity import Identity, identity_of
from megatron_resrl.training.session import Session, open_session
from megatron_resrl.training.sft_batch import replica_share, supervised_batch
from megatron_resrl.training.sft_evaluation import SftEvaluation
from megatron_resrl.training.stage import Stage, StageState
from megatron_resrl.training.starting_point import StartingPoint
from megatron_resrl.training.supervised import supervised_step

PHASES = ("update",)


def train(recipe: SftRecipe) -> None:
    """Fine-tunes the policy of a checked recipe; continues where an earlier run of it stopped.

    What it writes below `recipe.output_dir` is in docs/outputs.md.

    Raises:
        InputError: On all ranks: a file cannot be used, or the directory is another run's.
        NothingLeftToDo: All steps are done.
        DiskFull: A file could not be written.
        Interrupted: A signal asked the run to end before its last step; it is saved.
        NotFinite: Gradients were not finite, see `optimizer.non_finite`.
    """
    with open_session(recipe) as session:
        tokenizer, own_part = run_on_every_rank(lambda: _read_own(recipe))
        parts = gather_objects(own_part)
        data, identity = run_on_every_rank(lambda: _put_together(recipe, tokenizer, parts))
        if recipe.epochs is not None:
            recipe = dataclasses.replace(recipe, steps=data.steps(recipe.epochs, recipe.batch))
            session.settings = recipe
        start = session.find_start(identity)
        policy = Policy.build(
            recipe.model,
            recipe.parallel,
            recipe.precision,
            optimizer=recipe.optimizer,
            total_updates=recipe.steps,
            sequence_packing=recipe.batch.sequence_packing,
            sharing=Sharing(recipe.batch.shared_prefixes, "batch.shared_prefixes"),
            load_weights=start.checkpoint is None,
        )
        session.attempts(start, partial(_train, recipe, session, data, identity, policy))


@dataclass(frozen=True)
class SftData:
    """What a run learns from and is measured on."""

    tokenizer: Any
    examples: list[Example]
    held_out: dict[str, list[Example]]
    """Name of each file of `evaluation.files` -> its examples."""

    def steps(self, epochs: float, batch: SftBatchConfig) -> int:
        """Optimizer steps of so many passes over the examples."""
        return math.ceil(epochs * len(self.examples) / batch.global_batch_size)


@dataclass(frozen=True)
class _Parts:
    """What one rank has read of a run's conversations."""

    training: list[FilePart]
    held_out: list[FilePart]


def _read_own(recipe: SftRecipe) -> tuple[Any, _Parts]:
    """The tokenizer, and this rank's share of all rows as tokens."""
    model, data, evaluation = recipe.model, recipe.data, recipe.evaluation
    tokenizer = load_tokenizer(model)
    read = partial(
        read_part,
        data=data,
        tokenizer=tokenizer,
        vocab_size=read_hf_config(model.path, model.tokenizer_path).vocab_size,
        rank=dist.get_rank(),
        ranks=dist.get_world_size(),
    )
    return tokenizer, _Parts(
        read("data.train_files", data.train_files),
        read("evaluation.files", evaluation.files, limit=evaluation.max_conversations),
    )


def _put_together(
    recipe: SftRecipe, tokenizer: Any, parts: Sequence[_Parts]
) -> tuple[SftData, Identity]:
    """The conversations of a run, of all ranks' parts, and what gives the run its meaning."""
    max_length = recipe.data.max_length
    files = put_together([part.training for part in parts], max_length)
    examples = [example for each in files.values() for example in each]
    if len(examples) < recipe.batch.global_batch_size:
        raise InputError(
            f"data.train_files hold {len(examples)} conversations, fewer than "
            f"batch.global_batch_size = {recipe.batch.global_batch_size}: give more, or use at "
            f"most {len(examples)}"
        )
    held_out = put_together([part.held_out for part in parts], max_length)
    contents = {"data: conversations": f"{len(examples)}, digest {digest(examples)[:16]}"}
    for name, each in held_out.items():
        contents[f"evaluation: conversations of {name}"] = f"{len(each)}, {digest(each)[:16]}"
    return SftData(tokenizer, examples, held_out), identity_of(recipe, contents)


def _train(
    recipe: SftRecipe,
    session: Session,
    data: SftData,
    identity: Identity,
    policy: Policy,
    start: StartingPoint,
) -> None:
    sampler = PromptSampler(
        len(data.examples), recipe.batch.global_batch_size, recipe.seed, recipe.data.shuffle
    )
    resumed = session.resume(start, policy)
    if resumed and not start.new_data:
        sampler.load_state_dict(resumed.sampler)
    evaluation = SftEvaluation(recipe, data.held_out, policy, data.tokenizer)
    stage = Stage(
        headline="loss",
        state=lambda: StageState(sampler.state_dict(), {}),
        phases=PHASES,
        evaluate=evaluation.measure,
        evaluate_every=recipe.evaluation.every,
    )
    with session.run(stage, policy, identity, resumed) as run:
        for step in run.steps():
            drawn = [data.examples[index] for index in sampler.next_batch()]
            own = replica_share(drawn)
            batch = supervised_batch(
                own, recipe.batch, recipe.data.max_length, policy.prefix_multiple
            )
            outcome = supervised_step(policy, batch, 0.0, session.timers)
            metrics = outcome.metrics | {
                "data/epoch": sampler.epochs,
                "data/tokens": float(sum(map(len, drawn))),
            }
            run.finish_step(step, metrics, finite=outcome.finite)
