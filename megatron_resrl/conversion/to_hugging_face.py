"""Megatron checkpoints -> Hugging Face safetensors, by one process, a parameter at a time."""

from __future__ import annotations

import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from megatron_resrl.conversion.megatron_layout import ModelLayout, model_layout
from megatron_resrl.conversion.megatron_source import check_arguments, find_model_files
from megatron_resrl.conversion.model_directory import (
    DTYPES,
    DtypeName,
    check_dtypes,
    parse_bytes,
    read_model_config,
    refuse_unmapped_parameters,
)
from megatron_resrl.conversion.report import KEPT, ConversionReport, ConversionStats
from megatron_resrl.conversion.torch_dist_source import TorchDistSource
from megatron_resrl.errors import InputError
from megatron_resrl.platform.dtypes import dtype_name
from megatron_resrl.platform.new_directory import atomic_directory
from megatron_resrl.weights.expected import first_few
from megatron_resrl.weights.files import ShardWriter
from megatron_resrl.weights.megatron_folders import find_checkpoint
from megatron_resrl.weights.model_files import (
    copy_model_files,
    write_weights_to_config,
    written_dtype,
)


def convert_megatron_to_hf(
    input: str,
    output: str,
    model_files: str | None = None,
    tokenizer_path: str | None = None,
    dtype: DtypeName | None = None,
    max_shard_size: str = "5GB",
    force: bool = False,
) -> ConversionReport:
    """Writes a Megatron checkpoint as a Hugging Face model.

    Memory: one safetensors file and the shares of one Megatron parameter.

    Args:
        input: A directory made by the other direction, a run's `checkpoints/step_*`, or its
            output_dir for the newest of those, or a directory of Megatron-LM: `iter_*` or
            `release` in the torch_dist format, or the one above.
        output: Directory to make.
        model_files: Directory of config.json and the tokenizer, where the checkpoint has none. A
            checkpoint of Megatron-LM holds arguments that say what config.json would.
        tokenizer_path: Directory of another tokenizer; of Megatron-LM's checkpoint, its tokenizer.
        dtype: Type to write; default: the checkpoint's, or what tensors were before they came into
            it by the other direction.
        max_shard_size: Largest safetensors file, such as 500MB or 5GB.
        force: Replace `output` if it exists.

    Returns:
        What was read and written.

    Raises:
        InputError: Nothing is written if the input is not whole, is of an unknown kind, or does
            not fit config.json.
    """
    started = time.perf_counter()
    path, target = Path(input), Path(output)
    shard_bytes = parse_bytes(max_shard_size, "--max-shard-size")
    folder = find_checkpoint(path)
    files = find_model_files(path, folder, model_files)
    tokenizer = Path(tokenizer_path) if tokenizer_path else None
    hf_config, config = read_model_config(files, tokenizer)
    source = TorchDistSource(folder)
    check_arguments(source, hf_config, folder)
    layout = model_layout(hf_config, _vocabulary_rows(source, hf_config, folder))
    unexpected = source.unexpected(layout)
    refuse_unmapped_parameters(unexpected, folder)
    stored = _check_parameters(layout, source, folder)
    check_dtypes({dtype_name(kind): name for name, kind in stored.items()}, None, dtype, folder)
    types = _written_types(layout, source, stored, dtype)
    shapes = {name: shape for p in layout.parameters for name, shape in p.hf_shapes.items()}
    needed = sum(math.prod(shape) * types[name].itemsize for name, shape in shapes.items())
    with atomic_directory(target, sources=[path], force=force, needed=needed) as directory:
        stats = _write(layout, source, ShardWriter(directory, shard_bytes), types)
        copy_model_files(files, directory, tokenizer=tokenizer)
        described = dtype or _dtype_for_config(config, types)
        write_weights_to_config(directory, dtype=described, tied=hf_config.tie_word_embeddings)
    several = len(set(types.values())) > 1
    return stats.report(
        source=path,
        target=target,
        dtype=KEPT if several else dtype_name(next(iter(types.values()))),
        unexpected=unexpected,
        seconds=time.perf_counter() - started,
    )


def _written_types(
    layout: ModelLayout, source: TorchDistSource, stored: dict[str, torch.dtype], asked: str | None
) -> dict[str, torch.dtype]:
    """Dtype of each Hugging Face tensor: requested, or original, or as stored."""
    return {
        name: DTYPES[asked or source.hf_dtypes.get(name, dtype_name(stored[parameter.name]))]
        for parameter in layout.parameters
        for name in parameter.hf_shapes
    }


def _dtype_for_config(config: dict[str, Any], types: dict[str, torch.dtype]) -> str | None:
    """The most frequent dtype, if config.json names a dtype that no tensor has."""
    claimed, counted = written_dtype(config), Counter(map(dtype_name, types.values()))
    return None if claimed is None or claimed in counted else counted.most_common(1)[0][0]


def _write(
    layout: ModelLayout,
    source: TorchDistSource,
    writer: ShardWriter,
    types: dict[str, torch.dtype],
) -> ConversionStats:
    """Reads, splits and writes the parameters one by one."""
    stats = ConversionStats()
    for parameter in layout.parameters:
        whole = source.read(parameter)
        written = [types[name] for name in parameter.hf_shapes]
        stats.add(parameter, [whole.dtype] * len(written), written)
        names, tensors = layout.bridge._weight_to_hf_format(parameter.bridge_name, whole)
        for name, tensor in zip(names, tensors, strict=True):
            writer.add(name, tensor.to(types[name]))
    writer.close()
    return stats


def _vocabulary_rows(source: TorchDistSource, hf_config: PretrainedConfig, folder: Path) -> int:
    rows = source.vocabulary_rows
    if rows is None:
        raise InputError(f"{folder} lacks embedding.word_embeddings.weight; it is not of a GPT")
    if rows < hf_config.vocab_size:
        raise InputError(
            f"{folder}: the embedding has {rows} rows, but the vocab_size in config.json is "
            f"{hf_config.vocab_size}; give the --model-files of this model"
        )
    if hf_config.tie_word_embeddings and source.has_output_matrix:
        raise InputError(
            f"{folder} has an output matrix of its own, but config.json ties it to the embedding "
            "(tie_word_embeddings); give the --model-files of this model"
        )
    return rows


def _check_parameters(
    layout: ModelLayout, source: TorchDistSource, folder: Path
) -> dict[str, torch.dtype]:
    """Compares names and shapes of stored tensors with the parameters of the model.

    Returns:
        The type that each parameter is stored in, by name.

    Raises:
        InputError: A parameter is missing or of another shape.
    """
    missing, wrong, types = [], [], {}
    for parameter in layout.parameters:
        found = source.describe(parameter)
        if found is None:
            missing.append(parameter.name)
            continue
        shape, dtype = found
        if shape != parameter.shape:
            wrong.append(f"{parameter.name} is {shape} instead of {parameter.shape}")
        types[parameter.name] = dtype
    if missing:
        raise InputError(
            f"{folder} lacks parameters that config.json asks for: {first_few(missing)}"
        )
    if wrong:
        raise InputError(f"{folder} does not fit config.json: {first_few(wrong)}")
    return types
