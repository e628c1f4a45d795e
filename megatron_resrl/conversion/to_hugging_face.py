"""Megatron checkpoints -> Hugging Face safetensors, by one process, a parameter at a time."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from transformers import PretrainedConfig

from megatron_resrl.conversion.megatron_layout import ModelLayout, check_sizes, model_layout
from megatron_resrl.conversion.megatron_source import (
    MegatronSource,
    check_arguments,
    find_model_files,
    open_checkpoint,
)
from megatron_resrl.conversion.model_directory import (
    DTYPES,
    DtypeName,
    check_left_out,
    chosen_dtype,
    parse_bytes,
    read_model_config,
    some,
    whole_or_nothing,
)
from megatron_resrl.conversion.report import ConversionReport, Tally
from megatron_resrl.errors import InputError
from megatron_resrl.weights.files import ShardWriter
from megatron_resrl.weights.megatron_folders import find_checkpoint
from megatron_resrl.weights.model_files import copy_model_files, tell_weights


def convert_megatron_to_hf(
    input: str,
    output: str,
    tensor_model_parallel_size: int | None = None,
    pipeline_model_parallel_size: int | None = None,
    model_files: str | None = None,
    dtype: DtypeName | None = None,
    max_shard_size: str = "5GB",
    force: bool = False,
) -> ConversionReport:
    """Writes a Megatron checkpoint as a Hugging Face model.

    Memory: one safetensors file and the shares of one Megatron parameter.

    Args:
        input: A directory made by the other direction, a run's `checkpoints/step_*`, or a
            directory of Megatron-LM: `iter_*` or `release`, in the torch_dist format or with
            `mp_rank_*` folders, or the one above.
        output: Directory to make.
        tensor_model_parallel_size: That the checkpoint was saved with; default: what it says. A
            torch_dist checkpoint has the weights of any size.
        pipeline_model_parallel_size: Likewise.
        model_files: Directory of config.json and the tokenizer, where the checkpoint has none.
        dtype: Type to write; default: the checkpoint's.
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
    hf_config, _ = read_model_config(files)
    check_sizes(hf_config, tensor_model_parallel_size or 1, pipeline_model_parallel_size or 1)
    source = open_checkpoint(folder, tensor_model_parallel_size, pipeline_model_parallel_size)
    check_arguments(source, hf_config, folder)
    layout = model_layout(hf_config, _vocabulary_rows(source, hf_config, folder))
    unexpected = source.unexpected(layout)
    check_left_out(unexpected, folder)
    name = chosen_dtype(_check_parameters(layout, source, folder), None, dtype, folder)
    with whole_or_nothing(target, source=path, force=force) as directory:
        tally = _write(layout, source, ShardWriter(directory, shard_bytes), DTYPES[name])
        copy_model_files(files, directory)
        tell_weights(directory, dtype=name)
    return tally.report(
        source=path,
        target=target,
        dtype=name,
        unexpected=unexpected,
        seconds=time.perf_counter() - started,
    )


def _write(
    layout: ModelLayout, source: MegatronSource, writer: ShardWriter, dtype: torch.dtype
) -> Tally:
    """Reads, takes apart and writes one parameter after the other."""
    tally = Tally()
    for parameter in layout.parameters:
        whole = source.read(parameter)
        tally.note(parameter, [whole] * len(parameter.hf_shapes), dtype)
        names, tensors = layout.bridge._weight_to_hf_format(parameter.bridge_name, whole)
        for name, tensor in zip(names, tensors, strict=True):
            writer.add(name, tensor.to(dtype))
    writer.close()
    return tally


def _vocabulary_rows(source: MegatronSource, hf_config: PretrainedConfig, folder: Path) -> int:
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


def _check_parameters(layout: ModelLayout, source: MegatronSource, folder: Path) -> dict[str, str]:
    """Compares names and shapes with what the model is made of.

    Returns:
        A parameter's name by every dtype found.

    Raises:
        InputError: A parameter is missing or of another shape.
    """
    missing, wrong, examples = [], [], {}
    for parameter in layout.parameters:
        found = source.describe(parameter)
        if found is None:
            missing.append(parameter.name)
            continue
        shape, dtype = found
        if shape != parameter.shape:
            wrong.append(f"{parameter.name} is {shape} instead of {parameter.shape}")
        examples[str(dtype).removeprefix("torch.")] = parameter.name
    if missing:
        raise InputError(f"{folder} lacks parameters that config.json asks for: {some(missing)}")
    if wrong:
        raise InputError(f"{folder} does not fit config.json: {some(wrong)}")
    return examples
