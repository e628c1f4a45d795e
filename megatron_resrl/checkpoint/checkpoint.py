"""Saves and loads a run: the policy with its optimizer, and where the trainer is."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from megatron_resrl.checkpoint import folders, policy_state
from megatron_resrl.checkpoint.folders import CheckpointError
from megatron_resrl.platform.distributed import broadcast_object, named_phase
from megatron_resrl.policy.policy import Policy

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of the layout on disk."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class TrainerState:
    """Where the trainer is; everything is JSON."""

    step: int
    """Training steps done."""
    sampler: dict[str, Any]
    """The prompt sampler's position."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Whatever else a trainer wants back."""


def save_checkpoint(
    output_dir: Path, policy: Policy, state: TrainerState, *, keep_last: int
) -> Path:
    """Writes a checkpoint that exists either whole or not at all. Collective.

    Args:
        output_dir: Of the run; on a file system that all hosts share.
        policy: With an optimizer.
        state: Of the trainer, the same on all ranks.
        keep_last: Checkpoints kept, this one included; at least 1.

    Returns:
        `<output_dir>/checkpoints/step_<step>`.

    Raises:
        CheckpointError: Not all shards arrived.
        ValueError: Nothing to save, or `state` is not JSON; raised before anything is written.
    """
    if policy.optimizer is None:
        raise ValueError("save_checkpoint needs a policy built with trainable=True")
    if keep_last < 1:
        raise ValueError(f"checkpoint.keep_last is {keep_last}; it must be at least 1")
    trainer = {"format": FORMAT, **vars(state)}
    trainer |= {
        "model": policy_state.model_identity(policy),
        "optimizer": policy_state.optimizer_identity(policy),
        "layout": policy_state.layout(policy),
    }
    try:
        json.dumps(trainer)
    except TypeError as error:
        raise ValueError(f"the trainer's state cannot be written as JSON: {error}") from error
    with named_phase("checkpoint save"):
        folder = _on_first_rank(lambda: folders.begin(Path(output_dir), state.step))
        policy_state.save(policy, folder)
        return _on_first_rank(lambda: folders.publish(folder, trainer, keep_last))


def load_checkpoint(path: Path, policy: Policy) -> TrainerState:
    """Reads a checkpoint into the policy, in any TP x PP x DP layout. Collective.

    Under the layout it was saved in, the run continues bitwise. Under another one, random
    generators keep the state that start-up gave them: they are used in step by the ranks of a
    replica, and states of some other layout would part them. The log says so.

    Args:
        path: A checkpoint's folder, see `latest_checkpoint`.
        policy: Of the same model; without an optimizer, only the weights are read.

    Returns:
        The trainer's state.

    Raises:
        CheckpointError: The checkpoint is not whole or is of another model or optimizer.
    """
    path = Path(path)
    with named_phase("checkpoint load"):
        saved = _on_first_rank(lambda: _read_fitting(path, policy))
        own = policy_state.layout(policy)
        same_layout = saved["layout"] == own
        policy_state.load(policy, path, same_layout=same_layout)
    if not same_layout and policy.optimizer is not None and dist.get_rank() == 0:
        logger.warning(
            "%s was saved under %s, this run has %s: random generators start anew from the seed",
            path,
            saved["layout"],
            own,
        )
    return TrainerState(saved["step"], saved["sampler"], saved["extra"])


def _read_fitting(path: Path, policy: Policy) -> dict[str, Any]:
    """trainer.json of a whole checkpoint that fits the policy."""
    folders.check_whole(path)
    saved = folders.read_trainer_file(path)
    if saved.get("format") != FORMAT:
        raise CheckpointError(
            f"checkpoint {path} has format {saved.get('format')!r}; this version reads {FORMAT}"
        )
    advice = "set checkpoint.resume to never or choose another output_dir to start a new run"
    differences = _differences(saved["model"], policy_state.model_identity(policy))
    if differences:
        raise CheckpointError(
            f"checkpoint {path} is of another model than model.path: {differences}; {advice}"
        )
    if policy.optimizer is not None:
        differences = _differences(saved["optimizer"], policy_state.optimizer_identity(policy))
        if differences:
            raise CheckpointError(
                f"checkpoint {path} was saved under other settings: {differences}; use the "
                f"checkpoint's, or {advice}"
            )
    return saved


def _differences(saved: dict[str, Any], own: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} is {saved.get(name)!r} there and {value!r} here"
        for name, value in own.items()
        if saved.get(name) != value
    )


def _on_first_rank(action: Callable[[], Result]) -> Result:
    """Runs `action` on global rank 0; all ranks get its result, or raise its error."""
    result, error = None, None
    if dist.get_rank() == 0:
        try:
            result = action()
        except (CheckpointError, OSError) as problem:
            error = problem
    result, error = broadcast_object((result, error))
    if error is not None:
        raise error
    return result
