"""The subspace pass's share of a ResRL step on one rank and on two, and the bytes it sends.

    python benchmarks/subspace_share.py [--layers 30] [--output FILE]

A model with layers of SmolLM2-135M's size, fewer of them by default (random weights, fp32; 12 heads
and 4 key-value heads instead of 9 and 3, for tensor parallelism), 8 prompts of 35 tokens and 8
responses of 12 tokens to each, half of them right. Layouts: one rank; two with tensor and sequence
parallelism (TP2); two pipeline stages (PP2). Ranks are real processes over gloo, started by
torchrun, and divide the threads.

* Time: steps of ResRL and GRPO on the same groups in turn, so that a noisy machine hits both;
  medians, of the rank that spends most in the subspace, and the spread of the ratio of two steps
  made one after the other: where it is wider than the subspace's share, the ratio says nothing. The
  responses are given: without the time of sampling them shares come out too large. The subspace is
  a part of the scoring pass.
* Bytes: sent per rank, in a stream of tokens dealt to two ranks, with nothing else on the network:
  counted by `TokenShardGroup`, and seen on the loopback interface (half of
  the machine's growth, with the headers of TCP and gloo; the least of several runs, because other
  programs use the interface as well).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import command, describe

from megatron_resrl.algorithms import get_algorithm
from megatron_resrl.config import schema
from megatron_resrl.data.prompts import Prompt, PromptRecord
from megatron_resrl.diagnostics.observer import StepObservers
from megatron_resrl.diagnostics.step_metrics import StepMetrics
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.platform.distributed import gather_objects, initialize, shutdown
from megatron_resrl.rollout.batch import RolloutBatch
from megatron_resrl.rollout.collect import Sample
from megatron_resrl.rollout.engine import Response
from megatron_resrl.rollout.worker import build_policy
from megatron_resrl.subspace import (
    GroupPlan,
    SubspaceSettings,
    TokenShardGroup,
    TokenWeightStream,
    WindowLimits,
    make_plan,
)
from megatron_resrl.subspace.collectors import COLLECTORS
from megatron_resrl.token_weighting.factory import build_weighting
from megatron_resrl.token_weighting.registry import chosen_weighting
from megatron_resrl.training.rl_step import StepSettings, rl_step

HIDDEN_SIZE = 576
LAYOUTS: dict[str, dict[str, Any]] = {
    "one rank": {},
    "TP2": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "PP2": {"pipeline_model_parallel_size": 2},
}
ALGORITHMS = ("grpo", "resrl")
PHASES = ("scoring", "subspace", "update", "other")
SUBSPACE = SubspaceSettings()
FORWARDED = ("prompts", "group_size", "prompt_tokens", "response_tokens", "vocabulary", "repeats")
"""Settings that ranks have to know."""


def write_model(directory: Path, layers: int, vocabulary: int) -> None:
    """A random Llama."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=12,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(directory)


def recorded_groups(settings: argparse.Namespace) -> list[Sample]:
    """Random tokens; in each group every second response is right."""
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(settings.vocabulary, (count,), generator=generator).tolist())

    samples = []
    for group in range(settings.prompts):
        record = PromptRecord(group, [{"role": "user", "content": ""}], "", "", {})
        prompt = Prompt(record, tokens(settings.prompt_tokens))
        for number in range(settings.group_size):
            count = settings.response_tokens
            response = Response(tokens(count), (-10.0,) * count, "length")
            score = float(number % 2)
            samples.append(Sample(group, prompt, response, "", score, score, False))
    return samples


def time_steps(settings: argparse.Namespace) -> dict[str, Any]:
    """On every rank: median seconds per phase by algorithm, and bytes that the subspace sent."""
    recipe = schema.Recipe(
        model=schema.ModelConfig(str(settings.model)),
        parallel=schema.ParallelConfig(**LAYOUTS[settings.worker]),
        precision=schema.PrecisionConfig("fp32"),
        optimizer=schema.OptimizerConfig(lr_warmup_steps=0),
        algorithm=schema.AlgorithmConfig(micro_batch_size=16),
        resrl=schema.ResrlConfig(subspace_method="rows"),
    )
    initialize(recipe.parallel, recipe.seed)
    policy = build_policy(recipe)
    algorithms = {name: get_algorithm(name) for name in ALGORITHMS}
    weightings = {
        name: build_weighting(
            chosen_weighting(recipe.algorithm, recipe.resrl, weighted=algorithm.weighted),
            policy,
            recipe.resrl,
            recipe.rollout,
            seed=recipe.seed,
        )
        for name, algorithm in algorithms.items()
    }
    token_ranks = weightings["resrl"].ranks
    samples = recorded_groups(settings)
    times: dict[str, list[dict[str, float]]] = {name: [] for name in ALGORITHMS}
    for number in range(settings.repeats + 1):
        # The first is a warm-up: optimizer states, allocator.
        trained = samples if number else samples[: settings.group_size]
        for name in ALGORITHMS:
            dist.barrier()
            timers = PhaseTimers()
            sent = token_ranks.sent_bytes
            rl_step(
                policy,
                algorithms[name],
                weightings[name],
                RolloutBatch.from_samples(trained),
                StepSettings.from_recipe(recipe),
                number,
                timers,
                StepObservers([StepMetrics()]),
            )
            if number:
                times[name].append(timers.collect())
    found: dict[str, Any] = {name: _medians(steps) for name, steps in times.items()}
    pairs = zip(times["resrl"], times["grpo"], strict=True)
    found["ratios"] = [sum(resrl.values()) / sum(grpo.values()) for resrl, grpo in pairs]
    ranks = gather_objects(found | {"sent": token_ranks.sent_bytes - sent})
    shutdown()
    return max(ranks, key=lambda rank: rank["resrl"]["subspace"])


def _medians(steps: list[dict[str, float]]) -> dict[str, float]:
    """Of every phase, and of the whole step."""
    medians = {name: statistics.median(step.get(name, 0.0) for step in steps) for name in PHASES}
    return medians | {"step": statistics.median(sum(step.values()) for step in steps)}


def count_bytes(settings: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Counted and seen bytes per rank of both methods, on two ranks."""
    dist.init_process_group("gloo")
    tokens = settings.group_size // 2 * settings.response_tokens
    found = {}
    for method in COLLECTORS:
        plan = _plan(settings.prompts, tokens, method)
        runs = [_stream_once(plan, tokens, method) for _ in range(settings.repeats + 1)]
        found[method] = {
            "counted": statistics.mean(gather_objects(runs[0][0])),
            "seen": min(seen for _, seen in runs) / 2,
        }
    dist.destroy_process_group()
    return found


def _plan(groups: int, tokens: int, method: str) -> GroupPlan:
    """Of one right and one wrong response per group."""
    rows = torch.arange(2 * groups)
    return make_plan(
        torch.ones(len(rows), tokens, dtype=torch.bool),
        rows % 2 == 0,
        rows // 2,
        SUBSPACE,
        key=lambda number: number,
        ranks=2,
        limits=WindowLimits(groups=1 if method == "gram" else None),
    )


def _stream_once(plan: GroupPlan, tokens: int, method: str) -> tuple[int, int]:
    """Bytes this rank counted, and bytes the loopback interface sent meanwhile."""
    ranks = TokenShardGroup(dist.group.WORLD)
    stream = TokenWeightStream(plan, SUBSPACE, method=method, ranks=ranks)
    generator = torch.Generator().manual_seed(ranks.rank)
    dist.barrier()
    before = psutil.net_io_counters(pernic=True)["lo"].bytes_sent
    for window in plan.windows:
        for rows in (window.positives, window.negatives):
            row = torch.tensor(rows).repeat_interleave(tokens)[ranks.rank :: 2]
            position = torch.arange(tokens).repeat(len(rows))[ranks.rank :: 2]
            hidden = torch.randn(len(row), HIDDEN_SIZE, generator=generator)
            stream.add(hidden, row, position, rows)
    stream.finish()
    seen = psutil.net_io_counters(pernic=True)["lo"].bytes_sent - before
    return ranks.sent_bytes, seen


def launch(settings: argparse.Namespace, worker: str, world_size: int, model: Path) -> Any:
    """What the first of `world_size` ranks found."""
    command = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "localhost:0", "--nproc-per-node", str(world_size)]
    command += [__file__, "--worker", worker, "--model", str(model)]
    for name in FORWARDED:
        command += [f"--{name.replace('_', '-')}", str(getattr(settings, name))]
    threads = str(max(1, settings.threads // world_size))
    environment = dict(os.environ, OMP_NUM_THREADS=threads, PYTHONWARNINGS="ignore")
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(result.stdout.splitlines()[-1])


def report(
    times: dict[str, dict[str, Any]],
    sent: dict[str, dict[str, float]],
    settings: argparse.Namespace,
    where: str,
) -> str:
    """Two tables; the last line holds the largest share and step ratio of the layouts."""
    rows = []
    shares, ratios = [], []
    for layout, found in times.items():
        resrl, grpo = found["resrl"], found["grpo"]
        scoring = resrl["scoring"] + resrl["subspace"]
        shares.append(resrl["subspace"] / resrl["step"])
        ratios.append(statistics.median(found["ratios"]))
        cells = [layout, *(f"{resrl[name]:.3f}" for name in (*PHASES, "step"))]
        cells += [f"{grpo['step']:.3f}", f"{resrl['subspace'] / scoring:.2%}"]
        spread = f"{min(found['ratios']):.3f} to {max(found['ratios']):.3f}"
        cells += [f"{shares[-1]:.2%}", f"{ratios[-1]:.3f} ({spread})", f"{found['sent']}"]
        rows.append("| " + " | ".join(cells) + " |")
    bytes_rows = [
        f"| {method} | {n['counted']:.0f} | {n['seen']:.0f} |" for method, n in sent.items()
    ]
    return "\n".join(
        [
            "# The subspace pass in a ResRL step",
            "",
            f"`{command()}`, {where}, divided by the ranks. Medians of "
            f"{settings.repeats} steps in turn; {settings.prompts} prompts of "
            f"{settings.prompt_tokens} tokens x {settings.group_size} responses of "
            f"{settings.response_tokens} tokens, {settings.layers} layers of SmolLM2-135M's size "
            f"with random weights, {settings.vocabulary} words, fp32, micro-batches of 16, `rows`. "
            "Without sampling the responses. Step ratio: median, least and largest of two steps "
            "one after the other.",
            "",
            "| s | scoring | subspace | update | other | step | GRPO step | subspace of scoring "
            "| subspace of step | step ratio | bytes sent |",
            "|" + "---|" * 11,
            *rows,
            "",
            "Bytes per rank when two ranks share the tokens and do nothing else:",
            "",
            "| method | counted | on the loopback interface |",
            "|---|---|---|",
            *bytes_rows,
            "",
            f"subspace_share={max(shares):.5f} step_ratio={max(ratios):.3f}",
        ]
    )


def work(settings: argparse.Namespace) -> None:
    """What one rank does; the first prints what was found."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    found = count_bytes(settings) if settings.worker == "bytes" else time_steps(settings)
    if os.environ["RANK"] == "0":
        print(json.dumps(found))


def main() -> None:
    """Measures in processes of their own, and prints the page of results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=35)
    parser.add_argument("--response-tokens", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=9, help="timed steps of each algorithm")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of all ranks together")
    parser.add_argument("--output", type=Path, help="also write the report to this file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.worker:
        work(settings)
        return
    where = describe(("torch", "megatron-core"), settings.threads)
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory)
        write_model(model, settings.layers, settings.vocabulary)
        times = {
            layout: launch(settings, layout, 2 if parallel else 1, model)
            for layout, parallel in LAYOUTS.items()
        }
        sent = launch(settings, "bytes", 2, model)
    text = report(times, sent, settings, where)
    print(text)
    if settings.output:
        settings.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
