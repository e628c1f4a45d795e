"""Tokens per second of the rollout engines and of transformers, and how far engines are off.

    python benchmarks/rollout_engines.py --vllm-python PYTHON [--model DIR] [--output FILE]

The engines take turns, `--rounds` times, so that a noisy machine hits all. Each answers the same
prompts with the same model on the same threads, in a process of its own: `prompts` prompts x
`samples` samples x `tokens` tokens at temperature 1, with no stop token, after one short answer to
warm up. vLLM is the product's engine over HTTP; its server's start and the transfer of weights are
not counted. transformers reads every prompt once for each sample, the others once. The mismatch
compares each engine's log-probabilities with the trainer's, recomputed with the same precision.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import command, describe

from megatron_resrl.config import schema
from megatron_resrl.platform.distributed import initialize, shutdown
from megatron_resrl.policy.batches import TokenBatch, TokenSequence
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.engine import GenerationRequest, Response, SamplingParams
from megatron_resrl.rollout.engines.factory import make_engine
from megatron_resrl.rollout.worker import build_policy

ENGINES = ("transformers", "megatron", "vllm")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PROMPT_LENGTH = 32
CAVEAT = (
    "The model is untrained and its prompts are random tokens: its distributions are nearly flat, "
    "and a trained model's log-probabilities differ by more."
)


def write_model(directory: Path) -> None:
    """A random Llama of SmolLM2-135M's size, with heads that every engine takes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)


def prompts_of(count: int, vocabulary: int) -> list[list[int]]:
    """[count] prompts of random tokens, all of one length."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(10, vocabulary, (count, PROMPT_LENGTH), generator=generator)
    return rows.tolist()


def with_transformers(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of `generate`."""
    from transformers import AutoModelForCausalLM

    dtype = DTYPES[options.dtype]
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).eval()
    rows = torch.tensor(prompts_of(options.prompts, model.config.vocab_size))
    settings: dict[str, Any] = {
        "do_sample": True,
        "top_k": 0,
        "eos_token_id": None,
        "pad_token_id": 0,
        "attention_mask": torch.ones_like(rows),
    }
    model.generate(rows[:1], max_new_tokens=4, **settings | {"attention_mask": None})
    began = time.perf_counter()
    model.generate(
        rows,
        max_new_tokens=options.tokens,
        min_new_tokens=options.tokens,
        num_return_sequences=options.samples,
        **settings,
    )
    return {"seconds": time.perf_counter() - began}


def with_product(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the product's engine, and its mismatch to the trainer."""
    recipe = schema.Recipe(
        output_dir=options.work,
        model=schema.ModelConfig(path=options.model),
        precision=schema.PrecisionConfig(params_dtype=options.dtype),
        data=schema.DataConfig(max_prompt_length=PROMPT_LENGTH),
        rollout=schema.RolloutConfig(engine=options.engine, max_response_length=options.tokens),
        vllm=schema.VllmConfig(
            python=options.vllm_python,
            environment={
                "OMP_NUM_THREADS": str(options.threads),
                # GB; all responses at once, as the other engines have them.
                "VLLM_CPU_KVCACHE_SPACE": "4",
            },
            arguments={"skip-tokenizer-init": True},
        ),
    )
    initialize(recipe.parallel, seed=0)
    policy = build_policy(recipe, trainable=False)
    engine = make_engine(recipe, policy, None, trainable=False)
    try:
        prompts = prompts_of(options.prompts, policy.hf_config.vocab_size)
        sampling = SamplingParams(options.tokens, stop_token_ids=(), n=options.samples)
        engine.generate(
            GenerationRequest(prompts[:1], replace(sampling, n=1, max_new_tokens=4), seed=(0,))
        )
        began = time.perf_counter()
        groups = engine.generate(GenerationRequest(prompts, sampling, seed=(1,)))
        seconds = time.perf_counter() - began
    finally:
        engine.close()
    found = {"seconds": seconds} | mismatch(policy, prompts, groups)
    shutdown()
    return found


def mismatch(
    policy: Policy, prompts: list[list[int]], groups: list[list[Response]]
) -> dict[str, float]:
    """The engine's log-probabilities of some responses against the trainer's."""
    chosen = [(tuple(p), group[0]) for p, group in zip(prompts, groups, strict=True)][:16]
    sequences = [TokenSequence(prompt, response.token_ids) for prompt, response in chosen]
    batches = policy.micro_batches(TokenBatch.from_sequences(sequences), 4)
    own = policy.score(batches, temperature=1.0)
    trainer = torch.cat([scores.log_probs for scores in own]).double()
    engine = torch.tensor([v for _, response in chosen for v in response.log_probs]).double()
    ratio = trainer - engine
    return {
        "mean": float(ratio.abs().mean()),
        "max": float(ratio.abs().max()),
        "probability": float((trainer.exp() - engine.exp()).abs().mean()),
        "kl": float((torch.expm1(ratio) - ratio).mean()),
    }


def measure(engine: str, dtype: str, options: argparse.Namespace, work: str) -> dict[str, Any]:
    """Runs one engine in a process of its own."""
    command = [sys.executable, __file__, "--engine", engine, "--dtype", dtype, "--work", work]
    for name in ("model", "vllm_python", "prompts", "samples", "tokens", "threads"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    found = json.loads(done.stdout.splitlines()[-1])
    total = options.prompts * options.samples * options.tokens
    print(f"{engine} {dtype}: {total / found['seconds']:.0f} tokens/s", file=sys.stderr)
    return found | {"rate": total / found["seconds"]}


def measure_in_turn(
    options: argparse.Namespace, work: str
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """All runs, by precision and engine."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for _ in range(options.rounds):
        for dtype in DTYPES:
            for engine in ENGINES:
                found.setdefault((dtype, engine), []).append(measure(engine, dtype, options, work))
    return found


def spread(values: list[float], digits: int) -> str:
    """The median, the least and the largest."""
    middle, least, largest = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({least:.{digits}f} to {largest:.{digits}f})"


def report(options: argparse.Namespace, work: str) -> str:
    """The page of results."""
    machine = describe(("torch", "megatron-core", "transformers"), options.threads)
    lines = [
        "# Rollout engines",
        "",
        f"`{command()}`, {machine}. {options.prompts} prompts of "
        f"{PROMPT_LENGTH} random tokens x {options.samples} samples x {options.tokens} tokens of "
        f"{options.name}; medians of {options.rounds} rounds in which the engines take turns, and "
        "the least and the largest. transformers reads each prompt once for each of its samples.",
        "",
        "| engine | precision | tokens/s | against transformers | mean difference of log-probs | "
        "max | of probabilities, mean | KL, nats per token |",
        "|---|---|---|---|---|---|---|---|",
    ]
    found = measure_in_turn(options, work)
    for (dtype, engine), runs in found.items():
        peers = found[dtype, "transformers"]
        rates = [run["rate"] for run in runs]
        ratios = [run["rate"] / peer["rate"] for run, peer in zip(runs, peers, strict=True)]
        names = ("mean", "max", "probability", "kl")
        off = [f"{runs[0][name]:.2g}" if name in runs[0] else "" for name in names]
        cells = [engine, dtype, spread(rates, 0), spread(ratios, 2), *off]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", options.caveat] if options.caveat else []
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures one engine in this process, or all in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vllm-python", required=True, help="interpreter that has vLLM")
    parser.add_argument("--model", help="Hugging Face directory; default: a random Llama of 135M")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path)
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", choices=DTYPES, help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        torch.set_num_threads(options.threads)
        run = with_transformers if options.engine == "transformers" else with_product
        print(json.dumps(run(options)))
        return
    options.name = Path(options.model).name if options.model else "a random Llama of 135M"
    options.caveat = "" if options.model else CAVEAT
    with tempfile.TemporaryDirectory() as work:
        if options.model is None:
            options.model = str(Path(work) / "model")
            write_model(Path(options.model))
        text = report(options, work)
    print(text)
    if options.output:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
