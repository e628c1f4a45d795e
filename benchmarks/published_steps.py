"""What `megatron-resrl plan` says of GRPO steps that others have measured, beside their seconds.

    python benchmarks/published_steps.py [--dry_run] [--output FILE]

NeMo-RL 0.3 on H100 (its blog post of 2025-07-21), and the same recipes run again elsewhere (issue
959 of NVIDIA-NeMo/RL): 64 prompts x 32 responses to OpenMathInstruct-2, at most 4096 tokens, four
updates, sequences packed into rows of 4096 tokens, vLLM on the trainer's GPUs. `--dry_run` takes
scoring and update from dry runs instead of formulas (minutes). No rate is fitted to these steps.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_resrl.config.schema import (
    AlgorithmConfig,
    DataConfig,
    ModelConfig,
    ParallelConfig,
    Recipe,
    RolloutConfig,
    VllmConfig,
)
from megatron_resrl.planning.command import by_dry_run, by_formula, job_of
from megatron_resrl.planning.forecast import Forecast, Job
from megatron_resrl.planning.gpus import Rates, find_gpu
from megatron_resrl.planning.options import PlanOptions
from megatron_resrl.policy.families import find_family
from megatron_resrl.policy.model_shape import ModelShape

PROMPT_TOKENS = 150
"""Of a question with NeMo-RL's instruction and the chat template, about; it is not published."""

ROW_TOKENS = 4096
"""Of a packed row."""

SCORING_PASSES = 2
"""NeMo-RL's log-probs are those of the policy and of a reference; ours are the policy's."""


@dataclass(frozen=True)
class Measured:
    """A step as it was published."""

    name: str
    config: Mapping[str, Any]
    nodes: int
    parallel: ParallelConfig
    servers: int
    server_gpus: int
    response_tokens: int
    published: Mapping[str, float]
    again: Mapping[str, float]
    """By others on other machines."""


def _llama(hidden: int, layers: int, inner: int, heads: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }


STEPS = (
    Measured(
        "Llama 3.1 8B, 8 H100",
        _llama(4096, 32, 14336, 32),
        1,
        ParallelConfig(pipeline_model_parallel_size=2),
        8,
        1,
        795,
        {"training": 28, "log-probs": 18, "generation": 58, "weights": 5, "step": 112},
        {"training": 27, "log-probs": 18, "generation": 56, "weights": 8, "step": 116},
    ),
    Measured(
        "Llama 3.1 70B, 64 H100",
        _llama(8192, 80, 28672, 64),
        8,
        ParallelConfig(tensor_model_parallel_size=4, pipeline_model_parallel_size=4),
        16,
        4,
        398,
        {"training": 28, "log-probs": 18, "generation": 84, "weights": 14, "step": 147},
        {"training": 31, "log-probs": 20, "generation": 87, "weights": 26, "step": 178},
    ),
)


def recipe_of(step: Measured, model: str = "") -> Recipe:
    """The recipe of this product that comes closest."""
    rows = max(1, ROW_TOKENS // (PROMPT_TOKENS + step.response_tokens))
    # Servers that are already running, for a run's own are on one host.
    urls = tuple(f"http://server{number}:8000" for number in range(step.servers))
    return Recipe(
        model=ModelConfig(path=model),
        parallel=step.parallel,
        data=DataConfig(max_prompt_length=PROMPT_TOKENS),
        rollout=RolloutConfig(
            engine="vllm",
            prompts_per_step=64,
            group_size=32,
            max_response_length=ROW_TOKENS - PROMPT_TOKENS,
        ),
        vllm=VllmConfig(urls=urls, arguments={"gpu-memory-utilization": 0.6}),
        algorithm=AlgorithmConfig(
            name="grpo",
            updates_per_step=4,
            micro_batch_size=rows,
            sequence_packing=True,
            shared_prompts="never",
        ),
    )


def planned(step: Measured, forecast: Callable[[Job], Forecast], model: str = "") -> Forecast:
    """The forecast of a published step."""
    family = find_family(step.config)
    assert family is not None, "Llama is supported"
    options = PlanOptions(
        nodes=step.nodes,
        prompt_tokens=PROMPT_TOKENS,
        response_tokens=step.response_tokens,
        server_gpus=step.server_gpus,
    )
    recipe = recipe_of(step, model)
    return forecast(job_of(recipe, ModelShape.of(family), find_gpu("h100", Rates()), options))


def seconds_of(found: Forecast) -> dict[str, float]:
    """A forecast by the names of the published phases."""
    parts = found.parts
    named = {
        "training": parts["update"],
        "log-probs": SCORING_PASSES * parts["scoring"],
        "generation": parts["generation"],
        "weights": parts["weight_transfer"],
    }
    return named | {"step": sum(named.values())}


def table(forecast: Callable[[Job], Forecast], models: Path | None = None) -> Iterator[str]:
    """Lines of a table: forecast, published, and the difference.

    Args:
        forecast: `by_formula` or `by_dry_run`.
        models: Where the models' config.json are written, which dry runs read.
    """
    yield "| step | phase | forecast, s | published, s | difference | run again, s |"
    yield "|---|---|---:|---:|---:|---:|"
    for step in STEPS:
        model = "" if models is None else str(_write_config(models / step.name, step.config))
        for phase, seconds in seconds_of(planned(step, forecast, model)).items():
            published = step.published[phase]
            yield (
                f"| {step.name} | {phase} | {seconds:.1f} | {published} | "
                f"{seconds / published - 1:+.0%} | {step.again[phase]} |"
            )


def _write_config(folder: Path, config: Mapping[str, Any]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def main() -> None:
    """Compares, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry_run", action="store_true", help="dry runs instead of formulas")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder)
        lines = table(by_dry_run, models) if options.dry_run else table(by_formula)
        text = "\n".join(lines) + "\n"
    print(text, end="")
    if options.output:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
