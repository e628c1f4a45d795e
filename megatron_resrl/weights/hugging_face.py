"""Hugging Face weights into and out of megatron-core parameters, in any TP x EP x PP layout."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.models.gpt import GPTModel
from transformers import PretrainedConfig

from megatron_resrl.errors import InputError
from megatron_resrl.platform.dtypes import dtype_name
from megatron_resrl.platform.phases import named_phase
from megatron_resrl.policy.families import family_of
from megatron_resrl.weights.bridge import GroupedNames, bridge_of
from megatron_resrl.weights.expected import compare, first_few
from megatron_resrl.weights.export import ExportPlan
from megatron_resrl.weights.files import ShardWriter, stored_tensors
from megatron_resrl.weights.model_files import write_model_files

logger = logging.getLogger(__name__)

SHARD_BYTES = 5 * 10**9
"""Largest size of one exported safetensors file (Hugging Face's convention)."""


@torch.no_grad()
def load_weights(model_chunks: Sequence[GPTModel], hf_config: PretrainedConfig, path: str) -> None:
    """Reads a Hugging Face directory's safetensors into this rank's parameters.

    Collective over the tensor-parallel group and that of experts: their first ranks read and
    scatter. All ranks check the whole directory before that, so that they raise together.

    Args:
        model_chunks: This rank's bare model chunks.
        hf_config: The model's own configuration.
        path: Directory of the model.

    Raises:
        InputError: A file or a tensor is missing, unreadable, or of another shape than
            `hf_config` says, or quantized; named with the directory.
    """
    check_weights(hf_config, path)
    bridge_of(hf_config, model_chunks[0]).load_weights(
        [GroupedNames(model) for model in model_chunks], path, memory_efficient=False
    )


def check_weights(hf_config: PretrainedConfig, path: str) -> None:
    """Compares a directory's safetensors headers with the tensors that `hf_config` asks for.

    Tensors that the model does not have are named in the log; transformers leaves them out too.

    Raises:
        InputError: See `load_weights`.
    """
    found = compare(family_of(hf_config), stored_tensors(path))
    if found.wrong:
        raise InputError(
            f"model.path is {path!r}, whose weights do not fit its config.json: "
            f"{first_few(found.wrong)}; {found.remedy}"
        )
    if found.unexpected:
        logger.warning(
            "model.path %s holds tensors that a model of its config.json does not have; they are "
            "left out: %s",
            path,
            first_few(found.unexpected),
        )


def export_weights(
    model_chunks: Sequence[GPTModel], hf_config: PretrainedConfig
) -> Iterator[tuple[str, torch.Tensor]]:
    """Exports the whole model once, see `ExportPlan.export`. Collective, as the plan is, too.

    Who exports more than once keeps an `ExportPlan`.
    """
    return ExportPlan(model_chunks, hf_config).export()


@named_phase("export")
def save_hf_model(
    model_chunks: Sequence[GPTModel],
    hf_config: PretrainedConfig,
    directory: str | Path,
    *,
    tokenizer: str | None = None,
) -> None:
    """Writes the policy as a Hugging Face model directory.

    Sharded safetensors, and copies of the files that the model came with, so that every reader
    takes the two for the same model; config.json says the dtype of the weights, and whether they
    are tied. Collective; global rank 0 writes.

    Args:
        model_chunks: This rank's bare model chunks.
        hf_config: As `read_hf_config` reads it; it knows where the model's files are.
        directory: Made if absent.
        tokenizer: Setting `model.tokenizer_path`.
    """
    directory = Path(directory)
    writes = dist.get_rank() == 0
    if writes:
        directory.mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(directory, SHARD_BYTES)
    for name, tensor in export_weights(model_chunks, hf_config):
        if writes:
            writer.add(name, tensor)
    if writes:
        writer.close()
        dtype = dtype_name(model_chunks[0].config.params_dtype)
        write_model_files(hf_config, directory, tokenizer=tokenizer, dtype=dtype)
    dist.barrier()
