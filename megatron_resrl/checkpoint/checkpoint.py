"""Saves and loads a run: the policy with its optimizer, and the state of the trainer."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_resrl.checkpoint import folders, policy_state
from megatron_resrl.checkpoint.code_version import code_version
from megatron_resrl.checkpoint.folders import CheckpointError
from megatron_resrl.checkpoint.host_copies import HostMemory
from megatron_resrl.checkpoint.retention import Retention
from megatron_resrl.errors import InputError
from megatron_resrl.platform.distributed import gather_objects, run_on_rank_zero
from megatron_resrl.platform.phases import named_phase
from megatron_resrl.policy.policy import Policy
from megatron_resrl.weights.model_files import write_model_files
from megatron_resrl.weights.torch_dist_files import require_harmless

logger = logging.getLogger(__name__)

FORMAT = 2
"""Version of the layout on disk."""
MODEL_FILES = "hf"
"""Sub-folder with the model's configuration and tokenizer."""


@dataclass(frozen=True)
class TrainerState:
    """Progress of the trainer; all fields are JSON."""

    step: int
    """Training steps done."""
    sampler: dict[str, Any]
    """The prompt sampler's position."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further state that the trainer restores."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of this step; the metric that retention names decides which checkpoint is best."""
    recipe: str = ""
    """The resolved recipe as YAML; a resumed run compares it with its own recipe."""


class PendingSave:
    """A checkpoint whose contents are fixed and whose files are still to be written."""

    def __init__(
        self,
        folder: Path,
        write_shards: Callable[[], dict[str, str]],
        trainer: dict[str, Any],
        policy: Policy,
        retention: Retention,
        group: dist.ProcessGroup | None,
    ) -> None:
        self.folder = folder
        self._write_shards = write_shards
        self._trainer = trainer
        self._policy = policy
        self._retention = retention
        self._group = group

    def finish(self) -> Path:
        """Writes everything and makes it the latest checkpoint. Collective over the group.

        Returns:
            The checkpoint's folder.

        Raises:
            CheckpointError: On all ranks; nothing is left of the checkpoint, and the ones before
                it are untouched.
        """
        try:
            digests = self._write_shards()
            digests_of_all_ranks: dict[str, str] = {}
            for own in gather_objects(digests, self._group):
                digests_of_all_ranks |= own
            return run_on_rank_zero(
                lambda: self._publish(digests_of_all_ranks),
                self._group,
                file_error=CheckpointError,
            )
        except CheckpointError:
            if dist.get_rank() == 0:
                folders.abandon(self.folder)
            raise

    def _publish(self, digests: dict[str, str]) -> Path:
        hf_config = self._policy.hf_config
        if Path(str(hf_config.name_or_path)).is_dir():
            files = self.folder / MODEL_FILES
            write_model_files(hf_config, files, tokenizer=self._policy.tokenizer_path)
        return folders.publish(self.folder, self._trainer, digests, self._retention)


def begin_save(
    output_dir: Path,
    policy: Policy,
    state: TrainerState,
    *,
    retention: Retention,
    group: dist.ProcessGroup | None = None,
    copies: HostMemory | None = None,
) -> PendingSave:
    """Fixes the contents of a checkpoint. Collective.

    Args:
        output_dir: Of the run; on a file system that all hosts share.
        policy: With an optimizer.
        state: Of the trainer, the same on all ranks.
        retention: Which older checkpoints stay.
        group: Process group of all ranks, for writing; a thread needs a group of its own.
        copies: Where tensors are copied first, because the policy changes while files are written;
            None: it does not.

    Raises:
        CheckpointError: There is no room for it, or its first file cannot be written.
        ValueError: Nothing to save, or `state` is not JSON; raised before anything is written.
    """
    if not policy.trainable:
        raise ValueError("saving a checkpoint needs a policy that was built with an optimizer")
    if retention.keep_last < 1:
        raise ValueError(f"checkpoint.keep_last is {retention.keep_last}; it must be at least 1")
    trainer = {"format": FORMAT, **vars(state)}
    trainer |= {
        "model": policy_state.model_identity(policy),
        "optimizer": policy_state.optimizer_identity(policy),
        "layout": policy_state.layout(policy),
        "code": code_version(),
    }
    try:
        json.dumps(trainer)
    except TypeError as error:
        raise ValueError(f"the trainer's state cannot be written as JSON: {error}") from error
    with named_phase("checkpoint save"):
        folder = run_on_rank_zero(
            lambda: folders.begin(Path(output_dir), state.step), file_error=CheckpointError
        )
        try:
            write_shards = policy_state.capture(policy, folder, group=group, copies=copies)
        except CheckpointError:
            if dist.get_rank() == 0:
                folders.abandon(folder)
            raise
    return PendingSave(folder, write_shards, trainer, policy, retention, group)


def save_checkpoint(
    output_dir: Path,
    policy: Policy,
    state: TrainerState,
    *,
    keep_last: int = 2,
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
        CheckpointError: It could not be written, on any rank.
        ValueError: See `begin_save`.
    """
    pending = begin_save(output_dir, policy, state, retention=Retention(keep_last))
    with named_phase("checkpoint write"):
        return pending.finish()


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
        saved = run_on_rank_zero(lambda: _read_fitting(path, policy), file_error=CheckpointError)
        own = policy_state.layout(policy)
        same_layout = saved["layout"] == own
        policy_state.load(policy, path, same_layout=same_layout)
    if not same_layout and policy.trainable and dist.get_rank() == 0:
        logger.warning(
            "%s was saved under another layout: %s; random generators start anew from the seed",
            path,
            policy_state.layout_change(saved["layout"], own),
        )
    if dist.get_rank() == 0:
        _say_code_changes(path, saved["code"])
    names = [each.name for each in fields(TrainerState)]
    return TrainerState(**{name: saved[name] for name in names})


def _read_fitting(path: Path, policy: Policy) -> dict[str, Any]:
    """trainer.json of a checkpoint, after checking that it is whole, safe to load and fits."""
    folders.check_whole(path)
    try:
        require_harmless(path, objects=True)
    except InputError as error:
        raise CheckpointError(str(error)) from error
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
    if policy.trainable:
        differences = _differences(saved["optimizer"], policy_state.optimizer_identity(policy))
        if differences:
            raise CheckpointError(
                f"checkpoint {path} was saved under other settings: {differences}; use the "
                f"checkpoint's, or {advice}"
            )
    return saved


def _say_code_changes(path: Path, saved: dict[str, str | None]) -> None:
    changes = _differences(saved, code_version())
    if changes:
        logger.warning("%s was written by other code, numbers may differ: %s", path, changes)


def _differences(saved: dict[str, Any], own: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} is {saved.get(name)!r} there and {value!r} here"
        for name, value in own.items()
        if saved.get(name) != value
    )
