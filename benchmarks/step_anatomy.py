"""Where the work of an RL step goes: tokens, operations, padding and seconds of each phase.

    python benchmarks/step_anatomy.py [--models dense experts] [--steps 2] [--threads 1]
        [--prompts 4] [--group_size 8] [--prompt_tokens 128] [--response_tokens 64]
        [--layers N] [--output FILE]

Two models with random weights, in fp32 on the CPU: a Llama of SmolLM2-135M's size, and a Qwen3 with
8 experts of which each token takes 2. Each case is a process of its own: a ResRL step with every
feature below switched off, with one of them on, and with all; then decoding.

* Tokens are counted where they enter the layers, padding included, and operations of matrix
  products and attention (causal attention: half of the square) as they are dispatched, in a first
  step that also warms up. Seconds are medians of the steps after it.
* A rate is operations over seconds, as a share of the fastest large matrix product of the same
  process.
* Responses of the step are random tokens, between a half and the whole of `--response_tokens`, half
  of them right; decoding samples responses of full length for the same prompts.
* Decoding has few rows, so that its products reach less than the peak: its limit is the time of the
  same products alone, with the model's own matrices, one after the other. Above it stands the
  roofline: the smaller of the peak and operations per byte of weights times the memory's rate.

The last line: the shares of the peak that the update with all features and decoding reach, of the
first model.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from anatomy_work import PHASES, measure_decoding, measure_step
from machine import command, describe
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen3MoeConfig

from megatron_resrl.config.schema import AlgorithmConfig

SIZES = ("prompts", "group_size", "prompt_tokens", "response_tokens", "steps", "threads", "layers")
SEVERAL = 8
"""Responses of a micro-batch without a budget of tokens."""
OFF = {"single_pass": "never", "shared_prompts": "never"}


def features(row_tokens: int) -> dict[str, dict[str, Any]]:
    """Settings of `algorithm` that switch one feature on; those that this version has."""
    packed = {"sequence_packing": True}
    budget = {"micro_batch_size": 1024, "max_tokens_per_micro_batch": SEVERAL * row_tokens}
    every: dict[str, dict[str, Any]] = {
        "single pass": {"single_pass": "always"},
        "shared prompts": {"shared_prompts": "always"} | packed,
        "token budget": budget | packed,
    }
    return {name: settings for name, settings in every.items() if _known(settings) == settings}


def cases(row_tokens: int) -> dict[str, dict[str, Any]]:
    """Settings of `algorithm`, by what is on."""
    off = _known(OFF | {"micro_batch_size": SEVERAL})
    found = {"nothing": off}
    everything: dict[str, Any] = {}
    for name, settings in features(row_tokens).items():
        found[name] = off | settings
        everything |= settings
    return found | {"everything": off | everything}


def _known(settings: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(AlgorithmConfig)}
    return {name: value for name, value in settings.items() if name in names}


def config_of(model: str, layers: int | None) -> PretrainedConfig:
    """Of one of the two models."""
    torch.manual_seed(0)
    if model == "dense":
        return LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=layers or 30,
            num_attention_heads=9,
            num_key_value_heads=3,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
        )
    return Qwen3MoeConfig(
        vocab_size=16384,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=layers or 8,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=64,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=512,
        norm_topk_prob=True,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )


def in_own_process(options: argparse.Namespace, folder: Path, worker: str, settings: Any) -> Any:
    """What a worker finds with settings of `algorithm`."""
    command = [sys.executable, __file__, "--worker", worker, "--settings", json.dumps(settings)]
    command += ["--model", str(folder)]
    for name in SIZES:
        if (value := getattr(options, name)) is not None:
            command += [f"--{name}", str(value)]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    return json.loads(done.stdout.splitlines()[-1])


def share_of_peak(found: dict[str, Any], phase: str) -> float:
    """The rate of a phase over that of the fastest product; 0: the phase has no products."""
    seconds, operations = found["seconds"].get(phase, 0.0), found["operations"].get(phase, 0)
    return operations / seconds / found["peak"] if seconds and operations else 0.0


def step_table(found: dict[str, dict[str, Any]]) -> list[str]:
    """A row for each case."""
    lines = [
        "| on | tokens: scoring | update | padding of the update | TFLOP: scoring | update "
        "| s: scoring | subspace | update | other | step | of the peak: scoring | update |",
        "|---|" + "---:|" * 12,
    ]
    for name, each in found.items():
        tokens, work, seconds = each["tokens"], each["operations"], each["seconds"]
        cells = [
            name,
            *(f"{tokens.get(phase, 0)}" for phase in ("scoring", "update")),
            f"{each['padding']:.1%}",
            *(f"{work.get(phase, 0) / 1e12:.2f}" for phase in ("scoring", "update")),
            *(f"{seconds[phase]:.2f}" for phase in PHASES),
            f"{sum(seconds.values()):.2f}",
            *(f"{share_of_peak(each, phase):.0%}" for phase in ("scoring", "update")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def decoding_lines(found: dict[str, Any]) -> list[str]:
    """The roofline, the products alone, and decoding."""
    rows, work = found["rows"], found["product_operations"]
    intensity = work / found["weight_bytes"]
    roof = min(found["peak"], intensity * found["memory"])
    alone, limit = work / found["product_seconds"], found["product_seconds"] / found["seconds"]
    rate = found["operations"] / found["seconds"]
    return [
        f"Decoding {rows} rows, per token of each: {1e3 * found['seconds']:.1f} ms, "
        f"{rows / found['seconds']:.0f} tokens/s.",
        "",
        "| | GFLOP/s | of the peak |",
        "|---|---:|---:|",
        f"| fastest large product | {found['peak'] / 1e9:.0f} | 100% |",
        f"| roofline: {intensity:.0f} operations per byte of {found['weight_bytes'] / 1e6:.0f} MB "
        f"weights, memory {found['memory'] / 1e9:.1f} GB/s | {roof / 1e9:.0f} | "
        f"{roof / found['peak']:.0%} |",
        f"| the step's products alone, {1e3 * found['product_seconds']:.1f} ms | "
        f"{alone / 1e9:.0f} | {alone / found['peak']:.0%} |",
        f"| decoding, {limit:.0%} of the products alone | {rate / 1e9:.0f} | "
        f"{rate / found['peak']:.0%} |",
    ]


def main() -> None:
    """Measures in processes of their own, and prints the page of results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    models = ("dense", "experts")
    parser.add_argument("--models", nargs="+", choices=models, default=models)
    for name, default in (
        ("prompts", 4), ("group_size", 8), ("prompt_tokens", 128), ("response_tokens", 64),
        ("steps", 2), ("threads", 1), ("layers", None),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--output", type=Path, help="also write the report to this file")
    for name in ("worker", "settings", "model"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        torch.set_num_threads(options.threads)
        measure = measure_step if options.worker == "step" else measure_decoding
        print(json.dumps(measure(options)))
        return
    where = describe(("torch", "megatron-core"), options.threads)
    lines = [
        "# Anatomy of an RL step",
        "",
        f"`{command()}`, {where}. ResRL, fp32, "
        f"{options.prompts} prompts of {options.prompt_tokens} tokens x {options.group_size} "
        f"responses of {options.response_tokens // 2} to {options.response_tokens} tokens; medians "
        f"of {options.steps} steps. Micro-batches of {SEVERAL} padded responses, or of as many "
        "tokens, packed.",
    ]
    fractions: list[tuple[float, float]] = []
    for model in options.models:
        config = config_of(model, options.layers)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            made = AutoModelForCausalLM.from_config(config)
            made.save_pretrained(folder)
            row_tokens = options.prompt_tokens + options.response_tokens
            steps = {
                case: in_own_process(options, folder, "step", settings)
                for case, settings in cases(row_tokens).items()
            }
            decoding = in_own_process(options, folder, "decoding", _known(OFF))
        size = f"{made.num_parameters() / 1e6:.1f} M parameters"
        lines += ["", f"## {type(config).__name__.removesuffix('Config')}, {size}", ""]
        lines += [*step_table(steps), "", *decoding_lines(decoding)]
        rate = decoding["operations"] / decoding["seconds"] / decoding["peak"]
        fractions.append((share_of_peak(steps["everything"], "update"), rate))
    update, rate = fractions[0]
    lines += ["", f"update_fraction={update:.2f} decode_fraction={rate:.2f}"]
    text = "\n".join(lines)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
