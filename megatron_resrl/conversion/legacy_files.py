"""Megatron-LM's older checkpoints: one `mp_rank_XX[_YYY[_ZZZ]]/model_optim_rng.pt` per rank.

XX is the tensor-, YYY the pipeline- and ZZZ the expert-parallel rank; of the last two those are
left out whose size is 1.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from megatron_resrl.conversion.megatron_layout import ModelLayout, Parameter
from megatron_resrl.conversion.megatron_names import own_name
from megatron_resrl.errors import InputError
from megatron_resrl.weights.inert_pickle import read_torch_file

FILE = "model_optim_rng.pt"

_FOLDER = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3,}))?(?:_(\d{3,}))?")
_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.")
_EXPERT = re.compile(r"\.local_experts\.(\d+)\.")


class _Rank(NamedTuple):
    tensor: int
    pipeline: int
    expert: int


@dataclass(frozen=True)
class _Share:
    """One rank's share of a parameter."""

    rank: _Rank
    chunk: str
    """Key of the model chunk in the rank's file: model, or model0, model1, ..."""
    name: str
    """In that chunk."""
    shape: tuple[int, ...]
    dtype: torch.dtype


class LegacyReader:
    """Whole parameters out of the files of all ranks."""

    def __init__(
        self, folder: Path, tensor_parallel: int | None, pipeline_parallel: int | None
    ) -> None:
        """
        Args:
            folder: Of one iteration.
            tensor_parallel: Size that the user expects, if any.
            pipeline_parallel: Likewise.

        Raises:
            InputError: A rank's file is missing or unreadable, the sizes are not those of the
                files, or queries, keys and values are in the order of versions before 2.
        """
        first = sorted(path for path in folder.glob("mp_rank_*") if _FOLDER.fullmatch(path.name))
        if not first:
            raise InputError(f"{folder} has no mp_rank_* folder")
        content = read_torch_file(_file(first[0]), mapped=True)
        if not isinstance(content, dict):
            raise InputError(f"{first[0]} does not hold a checkpoint of Megatron-LM")
        version = content.get("checkpoint_version", 0)
        if version < 2.0:
            raise InputError(
                f"{first[0]} has checkpoint_version {version}, which orders queries, keys and "
                "values otherwise; load and save it with a Megatron-LM that writes version 3.0"
            )
        self.hf_dtypes: dict[str, str] = {}
        self.arguments = dict(vars(content["args"])) if "args" in content else {}
        sizes = _sizes(first, self.arguments)
        _check_expected(folder, sizes, tensor_parallel, pipeline_parallel)
        self._files = _rank_files(folder, sizes)
        self._sizes = sizes
        self._opened: dict[_Rank, dict[str, Any]] = {}
        self._layer: str | None = None
        self._shares = self._index()

    @property
    def has_output_matrix(self) -> bool:
        """Whether the output matrix is not the embedding's; the last stage has a copy of that."""
        untied = self.arguments.get("untie_embeddings_and_output_weights", False)
        return bool(untied) and "output_layer.weight" in self._shares

    @property
    def vocabulary_rows(self) -> int | None:
        """Rows of the embedding with their padding; None without an embedding."""
        shares = self._shares.get("embedding.word_embeddings.weight")
        return sum(share.shape[0] for share in shares) if shares else None

    def describe(self, parameter: Parameter) -> tuple[tuple[int, ...], torch.dtype] | None:
        """Shape of the whole parameter and its dtype; None if it is not there."""
        shares = self._shares.get(parameter.name)
        if not shares:
            return None
        shape = list(shares[0].shape)
        if parameter.partition_dim is not None:
            dimension = parameter.partition_dim
            shape[dimension] = sum(share.shape[dimension] for share in shares)
        return tuple(shape), shares[0].dtype

    def unexpected(self, layout: ModelLayout) -> tuple[str, ...]:
        """Stored tensors that are not parameters of `layout`, by megatron-core's names."""
        return tuple(sorted(self._shares.keys() - {p.name for p in layout.parameters}))

    def read(self, parameter: Parameter) -> torch.Tensor:
        """The whole parameter, put together from the tensor-parallel ranks' shares."""
        layer = _LAYER.match(parameter.name)
        if layer and layer[1] != self._layer:
            # What was read of a mapped file stays in memory as long as the file is open.
            self._opened.clear()
            self._layer = layer[1]
        shares = self._shares[parameter.name]
        if parameter.partition_dim is None:
            shares = shares[:1]
        tensors = [self._tensor(share) for share in shares]
        if len(tensors) == 1:
            return tensors[0]
        if len(parameter.pieces) == 2:
            gates, ups = zip(*(tensor.chunk(2) for tensor in tensors), strict=True)
            return torch.cat(gates + ups)
        return torch.cat(tensors, dim=parameter.partition_dim)

    def _tensor(self, share: _Share) -> torch.Tensor:
        return dict(_tensors(self._open(share.rank)[share.chunk]))[share.name]

    def _open(self, rank: _Rank) -> dict[str, Any]:
        if rank not in self._opened:
            self._opened[rank] = read_torch_file(self._files[rank], mapped=True)
        return self._opened[rank]

    def _index(self) -> dict[str, list[_Share]]:
        """Shares of every parameter in the order of tensor-parallel ranks."""
        layers_before = self._layers_before()
        shares: dict[str, list[_Share]] = defaultdict(list)
        for rank in sorted(self._files):
            content = self._open(rank)
            for chunk in _chunks(content):
                named = [(own_name(name), name, t) for name, t in _tensors(content[chunk])]
                experts = [int(found[1]) for own, *_ in named if (found := _EXPERT.search(own))]
                first_expert = rank.expert * (max(experts, default=-1) + 1)
                for own, name, tensor in named:
                    if rank.expert and not _EXPERT.search(own):
                        continue
                    own = _shifted(own, _LAYER, layers_before[rank.pipeline, chunk])
                    own = _shifted(own, _EXPERT, first_expert)
                    share = _Share(rank, chunk, name, tuple(tensor.shape), tensor.dtype)
                    # A tied embedding's copy on the last stage has the first stage's name in some.
                    if all(share.rank.tensor != other.rank.tensor for other in shares[own]):
                        shares[own].append(share)
        self._opened.clear()
        return dict(shares)

    def _layers_before(self) -> dict[tuple[int, str], int]:
        """Number of layers before each chunk of each stage: first chunks of all stages first."""
        counts = {}
        for stage in range(self._sizes.pipeline):
            content = self._open(_Rank(0, stage, 0))
            for chunk in _chunks(content):
                numbers = [
                    int(found[1])
                    for name, _ in _tensors(content[chunk])
                    if (found := _LAYER.match(own_name(name)))
                ]
                counts[stage, chunk] = max(numbers, default=-1) + 1
        before, total = {}, 0
        for stage, chunk in sorted(counts, key=lambda place: (place[1], place[0])):
            before[stage, chunk] = total
            total += counts[stage, chunk]
        return before


def _tensors(state: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of a state dict that may be nested, by their dotted names."""
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, dict):
            yield from _tensors(value, f"{prefix}{name}.")


def _chunks(content: dict[str, Any]) -> list[str]:
    return sorted(key for key in content if re.fullmatch(r"model\d*", key))


def _shifted(name: str, pattern: re.Pattern[str], by: int) -> str:
    """The name with the number that `pattern` finds increased."""
    found = pattern.search(name)
    if not found:
        return name
    return f"{name[: found.start(1)]}{int(found[1]) + by}{name[found.end(1) :]}"


def _file(folder: Path) -> Path:
    path = folder / FILE
    if not path.is_file():
        raise InputError(f"{path} is missing; copy the checkpoint of all ranks")
    return path


def _sizes(folders: list[Path], arguments: dict[str, Any]) -> _Rank:
    """Sizes that the run was started with, or else what the folders' names say."""
    if "tensor_model_parallel_size" in arguments:
        return _Rank(
            arguments["tensor_model_parallel_size"],
            arguments.get("pipeline_model_parallel_size") or 1,
            arguments.get("expert_model_parallel_size") or 1,
        )
    numbers = [_FOLDER.fullmatch(folder.name).groups(default="0") for folder in folders]
    return _Rank(
        *(max(int(value) for value in column) + 1 for column in zip(*numbers, strict=True))
    )


def _check_expected(
    folder: Path, sizes: _Rank, tensor_parallel: int | None, pipeline_parallel: int | None
) -> None:
    for option, found, expected in (
        ("tensor-model-parallel-size", sizes.tensor, tensor_parallel),
        ("pipeline-model-parallel-size", sizes.pipeline, pipeline_parallel),
    ):
        if expected is not None and expected != found:
            raise InputError(
                f"--{option} is {expected}, but {folder} was saved with {found}; give that or "
                "leave it out"
            )


def _rank_files(folder: Path, sizes: _Rank) -> dict[_Rank, Path]:
    files = {}
    for tensor in range(sizes.tensor):
        for pipeline in range(sizes.pipeline):
            for expert in range(sizes.expert):
                name = f"mp_rank_{tensor:02d}"
                name += f"_{pipeline:03d}" if sizes.pipeline > 1 else ""
                name += f"_{expert:03d}" if sizes.expert > 1 else ""
                files[_Rank(tensor, pipeline, expert)] = _file(folder / name)
    return files
