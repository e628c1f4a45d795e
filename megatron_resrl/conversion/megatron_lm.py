"""What a checkpoint that Megatron-LM loads has besides its weights: arguments and empty states."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch

from megatron_resrl.conversion.megatron_layout import ModelLayout
from megatron_resrl.errors import InputError
from megatron_resrl.policy.families import Family
from megatron_resrl.policy.families.megatron_lm import arguments_from_config, export_problems

FormatName = Literal["megatron-core", "megatron-lm"]

ROWS_DIVISIBLE_BY: dict[FormatName, int] = {"megatron-core": 1, "megatron-lm": 128}
"""Multiple of rows of the vocabulary that each tensor-parallel rank has, if none is given."""


def check_exportable(family: Family, source: Path) -> None:
    """Refuses a model that Megatron-LM cannot build.

    Raises:
        InputError: Names what its arguments cannot say.
    """
    for problem, fix in export_problems(family):
        raise InputError(f"--format megatron-lm: {source}: {problem}; {fix}")


def engine_states(layout: ModelLayout) -> Iterator[tuple[str, str]]:
    """Extra states that only Transformer Engine's layers ask for, which Megatron-LM has by default.

    Of each norm that is a layer by itself, and of attention.

    Yields:
        Name and key, as in `ModelLayout.objects`.
    """
    for parameter in layout.parameters:
        piece = parameter.pieces[0]
        if piece.key.endswith("layernorm.weight"):
            place = f"{piece.offset[0]}_{piece.global_shape[0]}" if piece.leading else "0_1"
            key = f"{piece.key.removesuffix('weight')}_extra_state/shard_{place}"
            yield parameter.name, key
    for name, key in layout.objects:
        if ".linear_proj." in key:
            yield name, key.replace(".linear_proj.", ".core_attention.")


def checkpoint_arguments(
    family: Family, *, rows: int, divisible_by: int, sizes: tuple[int, int], dtype: torch.dtype
) -> Namespace:
    """The arguments that Megatron-LM's `load_checkpoint` and `load_args_from_checkpoint` read.

    Args:
        family: Of a model that `check_exportable` accepts.
        rows: Of the embedding, with padding.
        divisible_by: Each tensor-parallel rank has a multiple of it.
        sizes: Tensor-parallel and pipeline-parallel ranks whose files are written.
        dtype: Of the weights.
    """
    tensor, pipeline = sizes
    return Namespace(
        **arguments_from_config(family),
        vocab_size=family.config["vocab_size"],
        padded_vocab_size=rows,
        make_vocab_size_divisible_by=divisible_by,
        tokenizer_type="HuggingFaceTokenizer",
        tokenizer_model=None,
        tiktoken_pattern=None,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=pipeline,
        virtual_pipeline_model_parallel_size=None,
        num_layers_per_virtual_pipeline_stage=None,
        expert_model_parallel_size=1,
        world_size=tensor * pipeline,
        data_parallel_size=1,
        data_parallel_random_init=False,
        ckpt_format="torch_dist",
        ckpt_fully_parallel_save=False,
        use_distributed_optimizer=False,
        no_save_optim=True,
        no_save_rng=True,
        consumed_train_samples=0,
        skipped_train_samples=0,
        consumed_valid_samples=0,
    )
