"""The subspace pass's share of a ResRL step, and that step against the same one with GRPO.

    python benchmarks/resrl_share.py [--repeats N] [--output benchmarks/results/resrl_share.md]

A model of the quickstart's size (SmolLM2-135M with random weights, fp32; 12 heads and 4 key-value
heads instead of 9 and 3, as when they are padded for tensor parallelism), 8 prompts of 35 tokens
and 8 responses of 12 tokens to each, half of them right. The groups are the same in every step,
so that both algorithms do the same work. Their steps alternate, so that a noisy machine hits
both; medians are compared. The rollout is the same for both; it is sampled for real and counts
once in each total.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import describe

from megatron_resrl.algorithms import get_algorithm
from megatron_resrl.config import schema
from megatron_resrl.data.prompts import Prompt, PromptRecord
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.platform.distributed import initialize, shutdown
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.collect import Sample
from megatron_resrl.rollout.engine import Response, SamplingParams
from megatron_resrl.rollout.megatron_engine import MegatronEngine
from megatron_resrl.training.phases import phase
from megatron_resrl.training.rl_step import rl_step

PROMPTS, GROUP_SIZE, PROMPT_TOKENS, RESPONSE_TOKENS = 8, 8, 35, 12
VOCABULARY = 49152
PACKAGES = ("torch", "megatron-core")
ALGORITHMS = ("grpo", "resrl")
PHASES = ("rollout", "scoring", "subspace", "update", "other")


def write_model(directory: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=12,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(directory)


def recorded_groups() -> list[Sample]:
    """Random tokens; in each group every second response is right."""
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(VOCABULARY, (count,), generator=generator).tolist())

    samples = []
    for group in range(PROMPTS):
        record = PromptRecord(group, [{"role": "user", "content": ""}], "", "", {})
        prompt = Prompt(record, tokens(PROMPT_TOKENS))
        for number in range(GROUP_SIZE):
            response = Response(tokens(RESPONSE_TOKENS), (-10.0,) * RESPONSE_TOKENS, "length")
            score = float(number % 2)
            samples.append(Sample(group, prompt, response, "", score, score, False))
    return samples


def measure(directory: Path, repeats: int) -> dict[str, list[dict[str, float]]]:
    """Seconds per phase of every step, by algorithm."""
    write_model(directory)
    recipe = schema.Recipe(
        model=schema.ModelConfig(str(directory)),
        precision=schema.PrecisionConfig("fp32"),
        optimizer=schema.OptimizerConfig(lr_warmup_steps=0),
        algorithm=schema.AlgorithmConfig(micro_batch_size=16),
    )
    initialize(recipe.parallel, recipe.seed)
    policy = Policy.from_recipe(recipe)
    engine = MegatronEngine(policy, max_running_samples=PROMPTS * GROUP_SIZE)
    samples = recorded_groups()
    prompts = [sample.prompt.token_ids for sample in samples[::GROUP_SIZE]]
    sampling = SamplingParams(RESPONSE_TOKENS, stop_token_ids=(), n=GROUP_SIZE)
    timers = PhaseTimers()

    def step(name: str, number: int, taught: Sequence[Sample]) -> dict[str, float]:
        timers.collect()
        rl_step(policy, get_algorithm(name), taught, recipe, number, timers)
        return timers.collect()

    for name in ALGORITHMS:
        step(name, 0, samples[:GROUP_SIZE])  # Warm-up: optimizer states, allocator.
    times: dict[str, list[dict[str, float]]] = {name: [] for name in ALGORITHMS}
    for number in range(1, repeats + 1):
        timers.collect()
        with phase(timers, "rollout"):
            engine.generate(prompts, sampling, seed=(recipe.seed, number))
        rollout = timers.collect()["rollout"]
        for name in ALGORITHMS:
            times[name].append({"rollout": rollout} | step(name, number, samples))
    shutdown()
    return times


def report(times: dict[str, list[dict[str, float]]], where: str) -> str:
    """A table of median seconds, and the two ratios in the last line."""

    def median(name: str, phase_name: str) -> float:
        return statistics.median(step.get(phase_name, 0.0) for step in times[name])

    totals = {
        name: statistics.median(sum(step.values()) for step in steps)
        for name, steps in times.items()
    }
    share = median("resrl", "subspace") / totals["resrl"]
    rows = [
        f"| {phase_name} | " + " | ".join(f"{median(n, phase_name):.3f}" for n in ALGORITHMS) + " |"
        for phase_name in PHASES
    ]
    return "\n".join(
        [
            "# A ResRL step against the same step with GRPO",
            "",
            f"`python benchmarks/resrl_share.py`, {where}. Medians of {len(times['resrl'])} steps "
            f"in turn; {PROMPTS} prompts of {PROMPT_TOKENS} tokens x {GROUP_SIZE} responses of "
            f"{RESPONSE_TOKENS} tokens, a model of SmolLM2-135M's size, fp32, micro-batches of 16.",
            "",
            "| s | " + " | ".join(ALGORITHMS) + " |",
            "|---|---|---|",
            *rows,
            "| **step** | " + " | ".join(f"**{totals[name]:.3f}**" for name in ALGORITHMS) + " |",
            "",
            f"subspace_share={share:.5f} step_ratio={totals['resrl'] / totals['grpo']:.3f}",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2, help="timed steps of each algorithm")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, help="also write the report to this file")
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    where = describe(PACKAGES, settings.threads)
    with tempfile.TemporaryDirectory() as directory:
        text = report(measure(Path(directory), settings.repeats), where)
    print(text)
    if settings.output:
        settings.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
