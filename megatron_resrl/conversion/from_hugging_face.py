"""Hugging Face safetensors -> megatron-core's torch_dist, by one process, a tensor at a time."""

from __future__ import annotations

import functools
import math
import time
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from megatron_resrl.conversion.megatron_layout import (
    ModelLayout,
    Parameter,
    check_sizes,
    model_layout,
    padded_rows,
)
from megatron_resrl.conversion.megatron_lm import (
    ROWS_DIVISIBLE_BY,
    FormatName,
    check_exportable,
    checkpoint_arguments,
    engine_states,
)
from megatron_resrl.conversion.model_directory import (
    DTYPES,
    RELEASE,
    DtypeName,
    check_dtypes,
    read_model_config,
    refuse_unmapped_parameters,
)
from megatron_resrl.conversion.report import KEPT, ConversionReport, ConversionStats
from megatron_resrl.conversion.torch_dist_source import HF_DTYPES
from megatron_resrl.errors import InputError
from megatron_resrl.platform.dtypes import dtype_name
from megatron_resrl.platform.new_directory import atomic_directory
from megatron_resrl.policy.families import family_of
from megatron_resrl.weights.expected import first_few
from megatron_resrl.weights.files import StoredTensor, stored_tensors
from megatron_resrl.weights.megatron_folders import MARKER
from megatron_resrl.weights.model_files import (
    copy_model_files,
    write_weights_to_config,
    written_dtype,
)
from megatron_resrl.weights.torch_dist_files import Block, TorchDistWriter

_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "I8": "int8",
}
"""safetensors' names of types -> torch's."""


def convert_hf_to_megatron(
    input: str,
    output: str,
    tensor_model_parallel_size: int = 1,
    pipeline_model_parallel_size: int = 1,
    make_vocab_size_divisible_by: int | None = None,
    dtype: DtypeName | None = None,
    force: bool = False,
    format: FormatName = "megatron-core",
) -> ConversionReport:
    """Writes a Hugging Face model as a Megatron checkpoint.

    The checkpoint can be loaded in any layout; the sizes say which ranks' files the weights lie in
    and how they are cut, so that ranks of that layout read only what is theirs. Memory: the
    Hugging Face tensors of one Megatron parameter, and that parameter.

    Args:
        input: Directory of the model: config.json, *.safetensors, tokenizer.
        output: Directory to make; it can be used as `model.path`.
        tensor_model_parallel_size: Ranks over which each layer's matrices are cut.
        pipeline_model_parallel_size: Ranks over which the layers are shared out.
        make_vocab_size_divisible_by: Rows of the vocabulary are padded with zeros until each
            tensor-parallel rank has a multiple of this; default: 1, and Megatron-LM's 128 with
            `format` megatron-lm.
        dtype: Type to write; default: each tensor's own, one of which config.json must name.
        force: Replace `output` if it exists.
        format: megatron-lm adds the arguments with which Megatron-LM builds the model, so that it
            loads the weights with `--load OUTPUT --finetune`.

    Returns:
        What was read and written.

    Raises:
        InputError: Nothing is written if the input is not whole, is of an unknown kind, or does
            not fit the sizes.
    """
    started = time.perf_counter()
    source, target = Path(input), Path(output)
    hf_config, config = read_model_config(source)
    family = family_of(hf_config)
    sizes = (tensor_model_parallel_size, pipeline_model_parallel_size)
    check_sizes(family, *sizes)
    if format == "megatron-lm":
        check_exportable(family, source)
    multiple = make_vocab_size_divisible_by
    multiple = ROWS_DIVISIBLE_BY[format] if multiple is None else multiple
    if multiple < 1:
        raise InputError(f"--make-vocab-size-divisible-by is {multiple}; it must be at least 1")
    rows = padded_rows(hf_config.vocab_size, tensor_model_parallel_size, multiple)
    layout = model_layout(hf_config, rows)
    stored = stored_tensors(source)
    unexpected = _check_tensors(layout, stored, source)
    refuse_unmapped_parameters(unexpected, source)
    names = {
        name: _NAMES.get(tensor.dtype, tensor.dtype)
        for name, tensor in stored.items()
        if name not in unexpected
    }
    examples = {kind: name for name, kind in names.items()}
    check_dtypes(examples, written_dtype(config), dtype, source)
    dtypes = {name: DTYPES[dtype or kind] for name, kind in names.items()}
    types = _Types(dtypes, _stored_types(layout, dtypes))
    ranks = _Ranks(*sizes)
    needed = sum(types.of(p).itemsize * math.prod(p.shape) for p in layout.parameters)
    arguments = None
    if format == "megatron-lm":
        widest = functools.reduce(torch.promote_types, types.stored.values())
        arguments = checkpoint_arguments(
            family, rows=rows, divisible_by=multiple, sizes=sizes, dtype=widest
        )
    with atomic_directory(target, sources=[source], force=force, needed=needed) as folder:
        stats = _write(layout, stored, folder / RELEASE, ranks, types, arguments)
        (folder / MARKER).write_text(RELEASE)
        copy_model_files(source, folder)
        write_weights_to_config(folder, dtype=dtype, tied=hf_config.tie_word_embeddings)
    return stats.report(
        source=source,
        target=target,
        dtype=dtype or (KEPT if len(examples) > 1 else min(examples)),
        unexpected=unexpected,
        seconds=time.perf_counter() - started,
    )


@dataclass(frozen=True)
class _Ranks:
    """The layout whose ranks' files are written."""

    tensor_parallel: int
    pipeline_parallel: int

    @property
    def count(self) -> int:
        return self.tensor_parallel * self.pipeline_parallel


@dataclass(frozen=True)
class _Types:
    """Dtypes of the written weights."""

    hugging_face: dict[str, torch.dtype]
    """Name of a Hugging Face tensor -> its own dtype, or the requested dtype."""
    stored: dict[str, torch.dtype]
    """Key of a stored tensor -> dtype to which the dtypes of all its parts are promoted."""

    def of(self, parameter: Parameter) -> torch.dtype:
        """The dtype in which a parameter is stored."""
        return self.stored[parameter.pieces[0].key]

    def narrower(self, layout: ModelLayout) -> dict[str, str]:
        """Name -> dtype name, for tensors that are stored in a wider dtype."""
        return {
            name: dtype_name(self.hugging_face[name])
            for parameter in layout.parameters
            for name in parameter.hf_shapes
            if self.hugging_face[name] != self.of(parameter)
        }


def _stored_types(layout: ModelLayout, dtypes: dict[str, torch.dtype]) -> dict[str, torch.dtype]:
    """Promoted dtype of each stored tensor, which may hold all layers, or query, key and value."""
    types: dict[str, torch.dtype] = {}
    for parameter in layout.parameters:
        for piece in parameter.pieces:
            for name in parameter.hf_shapes:
                before = types.get(piece.key, dtypes[name])
                types[piece.key] = torch.promote_types(before, dtypes[name])
    return types


def _write(
    layout: ModelLayout,
    stored: dict[str, StoredTensor],
    folder: Path,
    ranks: _Ranks,
    types: _Types,
    arguments: Namespace | None,
) -> ConversionStats:
    """Reads, reshapes, splits and writes the parameters one by one, then the common values."""
    folder.mkdir()
    cuts = {
        p.name: _cuts(p, layout.stage(p.name, ranks.pipeline_parallel), ranks)
        for p in layout.parameters
    }
    more_objects = () if arguments is None else engine_states(layout)
    objects = [
        (layout.stage(name, ranks.pipeline_parallel) * ranks.tensor_parallel, key)
        for name, key in (*layout.objects, *more_objects)
    ]
    blocks = [block for parts in cuts.values() for block, _ in parts]
    writer = TorchDistWriter(folder, ranks.count, blocks, objects, types.stored)
    stats = ConversionStats()
    for parameter in layout.parameters:
        tensors = [_read(stored[name], name) for name in parameter.hf_shapes]
        asked = [types.hugging_face[name] for name in parameter.hf_shapes]
        stats.add(parameter, [tensor.dtype for tensor in tensors], asked)
        kept = zip(tensors, asked, strict=True)
        tensors = [tensor.to(dtype).to(types.of(parameter)) for tensor, dtype in kept]
        whole = layout.bridge._weight_to_mcore_format(parameter.bridge_name, tensors)
        del tensors
        for block, place in cuts[parameter.name]:
            writer.write(block, whole[place])
    writer.close(
        {
            "checkpoint_version": 3.0,
            "iteration": 0,
            "content_metadata": {"singleton_local_shards": False},
            HF_DTYPES: types.narrower(layout),
            **({} if arguments is None else {"args": arguments}),
        }
    )
    return stats


def _cuts(parameter: Parameter, stage: int, ranks: _Ranks) -> list[tuple[Block, tuple[slice, ...]]]:
    """Blocks that the ranks of a stage write, and their places in the whole parameter."""
    dimension = parameter.partition_dim
    count = 1 if dimension is None else ranks.tensor_parallel
    cuts = []
    for number, piece in enumerate(parameter.pieces):
        for rank in range(count):
            shape, start = list(piece.shape), [0] * len(piece.shape)
            if dimension is not None:
                shape[dimension] //= count
                start[dimension] = rank * shape[dimension]
            offset = list(piece.offset)
            for axis, first in enumerate(start):
                offset[piece.leading + axis] += first
            # Gates come first in the parameter, then ups.
            start[0] += number * piece.shape[0]
            block = Block(
                rank=stage * ranks.tensor_parallel + rank,
                key=piece.key,
                global_shape=piece.global_shape,
                offset=tuple(offset),
                shape=(1,) * piece.leading + tuple(shape),
            )
            place = tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))
            cuts.append((block, place))
    return cuts


def _read(stored: StoredTensor, name: str) -> torch.Tensor:
    """Reads a tensor from its file.

    The file is opened for each tensor, because an open file keeps everything read from it in
    memory.
    """
    with safe_open(stored.file, framework="pt") as tensors:
        return tensors.get_tensor(name)


def _check_tensors(
    layout: ModelLayout, stored: dict[str, StoredTensor], source: Path
) -> tuple[str, ...]:
    """Compares names and shapes of stored tensors with the parameters of the model.

    Returns:
        Names of tensors that are not part of the model.

    Raises:
        InputError: A tensor is missing or of another shape.
    """
    expected = {
        name: (shape, parameter)
        for parameter in layout.parameters
        for name, shape in parameter.hf_shapes.items()
    }
    missing = sorted(expected.keys() - stored.keys())
    if missing:
        raise InputError(
            f"{source} lacks tensors that its config.json asks for: {first_few(missing)}"
        )
    for name, (shape, parameter) in expected.items():
        found = stored[name].shape
        if found == shape:
            continue
        if parameter.is_vocabulary and found[1:] == shape[1:]:
            raise InputError(
                f"{source}: {name} has {found[0]} rows, but the vocab_size in config.json is "
                f"{shape[0]}; correct config.json, or resize the embedding and save it again"
            )
        raise InputError(
            f"{source}: {name} is {found} instead of {shape}, which config.json asks for"
        )
    return tuple(sorted(stored.keys() - expected.keys()))
