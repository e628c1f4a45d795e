"""Contents, layout and completeness of a checkpoint, without loading it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from megatron_resrl.checkpoint import checksums, folders
from megatron_resrl.checkpoint.folders import CheckpointError
from megatron_resrl.platform.dtypes import dtype_name
from megatron_resrl.platform.run_files import finished_checkpoints, step_of

_OPTIMIZER = "optimizer.state."
_OPTIMIZER_PARTS = {"param": "fp32 masters", "exp_avg": "moments (exp_avg)"}


@dataclass(frozen=True)
class Part:
    """Tensors of one kind."""

    tensors: int
    """Distinct names; all layers of a stack count as one."""
    elements: int
    bytes: int
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """Result of an inspection."""

    path: Path
    trainer: dict[str, Any]
    """trainer.json: step, layout, model, code, metrics...; empty for weights without a run."""
    parts: dict[str, Part]
    """Weights, masters, moments: by kind."""
    objects: int
    """Pickled entries: random states, FP8 state..."""
    tensors: dict[str, tuple[tuple[int, ...], str]]
    """Shape and dtype by name."""
    files: dict[str, int]
    """Bytes of each file by its path in the folder."""
    problems: tuple[str, ...]
    """Why the checkpoint cannot be resumed from or read; empty: it is complete."""
    verified: bool
    """Whether contents were compared with the checksums."""


def inspect_checkpoint(path: Path, *, verify: bool = False) -> Inspection:
    """Inspects one folder in megatron-core's torch_dist format.

    Args:
        path: `<output_dir>/checkpoints/step_<n>`, or a folder of converted weights.
        verify: Read every file and compare it with its checksum.

    Raises:
        CheckpointError: There is no such folder, or it has no index to look into.
    """
    metadata = folders.read_index(path)
    is_run = (path / folders.TRAINER_FILE).is_file()
    problems = _uncovered(metadata)
    try:
        folders.check_whole(path, of_run=is_run)
        trainer = folders.read_trainer_file(path) if is_run else {}
    except CheckpointError as error:
        trainer = {}
        problems.append(str(error))
    listed = (path / checksums.SUMS_FILE).is_file()
    if verify and listed:
        problems += checksums.damaged_files(path)
    elif verify:
        problems.append(f"there is no {checksums.SUMS_FILE} to compare with")
    return Inspection(
        path=path,
        trainer=trainer,
        parts=_parts(metadata),
        objects=sum(not _is_tensor(entry) for entry in metadata.state_dict_metadata.values()),
        tensors={
            name: (tuple(entry.size), _dtype(entry))
            for name, entry in metadata.state_dict_metadata.items()
            if _is_tensor(entry)
        },
        files={
            file.relative_to(path).as_posix(): file.stat().st_size
            for file in sorted(path.rglob("*"))
            if file.is_file()
        },
        problems=tuple(problems),
        verified=verify and listed,
    )


def checkpoint_folders(path: Path) -> list[Path]:
    """Folders to inspect: the path itself, or the checkpoints of a run or converted model in it.

    Raises:
        CheckpointError: There is none.
    """
    if (path / ".metadata").is_file():
        return [path]
    for root in (path / "checkpoints", path):
        found = sorted(finished_checkpoints(root), key=step_of)
        if found:
            return found
    found = sorted(index.parent for index in path.glob("*/.metadata"))
    if not found:
        raise CheckpointError(
            f"{path} is neither a checkpoint (it has no .metadata) nor a folder that holds some"
        )
    return found


def report(inspection: Inspection, *, tensors: bool = False) -> str:
    """The inspection as text for people."""
    trainer = inspection.trainer
    lines = [str(inspection.path)]
    if trainer:
        lines.append(f"  step      {trainer['step']}")
        lines.append(f"  layout    {_fields(trainer['layout'])}")
        lines.append(f"  model     {_fields(trainer['model'])}")
        lines.append(f"  code      {_fields(trainer['code'])}")
    for kind, part in inspection.parts.items():
        lines.append(
            f"  {kind:<22} {part.tensors:>5} tensors {part.elements:>16,} elements "
            f"{part.bytes / 1e9:>10.4f} GB  {', '.join(part.dtypes)}"
        )
    lines.append(f"  {'objects':<22} {inspection.objects:>5}")
    total = sum(inspection.files.values())
    lines.append(f"  {'files':<22} {len(inspection.files):>5} {total / 1e9:>41.4f} GB")
    if tensors:
        lines += [f"    {name}  {shape}  {d}" for name, (shape, d) in inspection.tensors.items()]
    lines += [f"  PROBLEM   {problem}" for problem in inspection.problems]
    if not inspection.problems:
        how = "every file equals its checksum" if inspection.verified else "contents not read"
        lines.append(f"  complete  ({how})")
    return "\n".join(lines)


def as_json(inspection: Inspection) -> str:
    """The inspection for programs."""
    content = {**vars(inspection), "path": str(inspection.path)}
    content["parts"] = {kind: vars(part) for kind, part in inspection.parts.items()}
    return json.dumps(content, indent=2)


def _is_tensor(entry: Any) -> TypeGuard[TensorStorageMetadata]:
    return isinstance(entry, TensorStorageMetadata)


def _dtype(entry: TensorStorageMetadata) -> str:
    return dtype_name(entry.properties.dtype)


def _kind(name: str) -> str:
    if not name.startswith(_OPTIMIZER):
        return "weights"
    part = name.removeprefix(_OPTIMIZER).partition(".")[0]
    return _OPTIMIZER_PARTS.get(part, f"moments ({part})")


def _parts(metadata: Metadata) -> dict[str, Part]:
    entries: dict[str, list[TensorStorageMetadata]] = {}
    for name, entry in metadata.state_dict_metadata.items():
        if _is_tensor(entry):
            entries.setdefault(_kind(name), []).append(entry)
    return {
        kind: Part(
            tensors=len(own),
            elements=sum(math.prod(entry.size) for entry in own),
            bytes=sum(math.prod(e.size) * e.properties.dtype.itemsize for e in own),
            dtypes=tuple(sorted({_dtype(entry) for entry in own})),
        )
        for kind, own in sorted(entries.items(), reverse=True)
    }


def _uncovered(metadata: Metadata) -> list[str]:
    """Problems: tensors of which a part was written by no rank."""
    problems = []
    for name, entry in metadata.state_dict_metadata.items():
        if not _is_tensor(entry):
            continue
        written = sum(math.prod(chunk.sizes) for chunk in entry.chunks)
        if written < math.prod(entry.size):
            problems.append(f"{name}: {written} of {math.prod(entry.size)} elements were written")
    return problems


def _fields(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
