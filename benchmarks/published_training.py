"""What `megatron-resrl plan` says of pretraining and fine-tuning that others have measured.

    python benchmarks/published_training.py [--output FILE]

NeMo 24.12 on DGX H100 in FP8 (docs.nvidia.com/nemo-framework/user-guide/24.12, performance
summary), by formulas. No rate is fitted to these numbers.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_resrl.config.schema import ParallelConfig, PrecisionConfig
from megatron_resrl.config.schema_pretrain import BatchConfig, PretrainDataConfig, PretrainRecipe
from megatron_resrl.config.schema_sft import SftBatchConfig, SftDataConfig, SftRecipe
from megatron_resrl.planning.command import by_formula, job_of
from megatron_resrl.planning.gpus import Rates, find_gpu
from megatron_resrl.planning.options import PlanOptions
from megatron_resrl.policy.families import find_family
from megatron_resrl.policy.model_shape import ModelShape

FP8 = PrecisionConfig(fp8="hybrid")
OVERLAPPED = {"overlap_grad_reduce": True, "overlap_param_gather": True}


def _llama(hidden: int, layers: int, inner: int, heads: int, *, version: int) -> dict[str, Any]:
    grouped = version == 3 or hidden == 8192
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 128256 if version == 3 else 32000,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": 8 if grouped else heads,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }


@dataclass(frozen=True)
class Measured:
    """A job as it was published."""

    name: str
    config: Mapping[str, Any]
    recipe: PretrainRecipe | SftRecipe
    nodes: int
    published: int
    """Tokens per second and GPU."""


def _pretraining(sequences: int, tokens: int, **parallel: Any) -> PretrainRecipe:
    return PretrainRecipe(
        parallel=ParallelConfig(ddp=OVERLAPPED, **parallel),
        precision=FP8,
        batch=BatchConfig(global_batch_size=sequences),
        data=PretrainDataConfig(sequence_length=tokens),
    )


JOBS = (
    Measured(
        "Llama 3 8B, 8 H100, pretraining",
        _llama(4096, 32, 14336, 32, version=3),
        _pretraining(128, 8192, context_parallel_size=2),
        1,
        12273,
    ),
    Measured(
        "Llama 2 7B, 8 H100, pretraining",
        _llama(4096, 32, 11008, 32, version=2),
        _pretraining(128, 4096),
        1,
        16934,
    ),
    Measured(
        "Llama 2 7B, 8 H100, fine-tuning",
        _llama(4096, 32, 11008, 32, version=2),
        # Packed rows of 4096 tokens; a conversation of ours fills one.
        SftRecipe(
            parallel=ParallelConfig(ddp=OVERLAPPED),
            precision=FP8,
            batch=SftBatchConfig(global_batch_size=32),
            data=SftDataConfig(max_length=4096),
        ),
        1,
        16891,
    ),
    Measured(
        "Llama 3 70B, 64 H100, pretraining",
        _llama(8192, 80, 28672, 64, version=3),
        _pretraining(
            128,
            8192,
            tensor_model_parallel_size=4,
            sequence_parallel=True,
            pipeline_model_parallel_size=4,
            virtual_pipeline_model_parallel_size=5,
            context_parallel_size=2,
        ),
        8,
        1524,
    ),
)


def tokens_per_gpu(job: Measured) -> float:
    """Tokens per second and GPU, as forecast."""
    family = find_family(job.config)
    assert family is not None, "Llama is supported"
    options = PlanOptions(nodes=job.nodes, quick=True)
    planned = job_of(job.recipe, ModelShape.of(family), find_gpu("h100", Rates()), options)
    return by_formula(planned).rates["tokens_per_second"] / options.world_size


def table() -> Iterator[str]:
    """Lines of a table: forecast, published, and the difference."""
    yield "| job | forecast, tokens/s of a GPU | published | difference |"
    yield "|---|---:|---:|---:|"
    for job in JOBS:
        found = tokens_per_gpu(job)
        difference = f"{found / job.published - 1:+.0%}"
        yield f"| {job.name} | {found:.0f} | {job.published} | {difference} |"


def main() -> None:
    """Compares, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    text = "\n".join(table()) + "\n"
    print(text, end="")
    if options.output:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
