"""Saving and loading a run: in the background, while training waits, and as others do it.

    python benchmarks/checkpoint.py [--model DIR] [--output FILE]

One rank, fp32, AdamW with megatron-core's distributed optimizer: a checkpoint holds weights,
masters and both moments. The model is a Hugging Face directory, or by default a random Llama of
SmolLM2-135M's size. A step is an update on `--sequences` sequences of `--tokens` tokens.

* `blocking`: seconds that a save holds up training; in the background also what the steps taken
  while files are written lose by it, against steps without a save, taken in turn.
* Peers, of the same state in the same run: `torch.save` of all tensors into one file, synced to
  disk, and megatron-core's own `dist_checkpointing.save`, which starts helper processes.
* Resuming: from the start of a process (`python`, imports, model, verification of checksums,
  loading) to the end of its first step, in a process of its own.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from megatron.core import dist_checkpointing
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import describe

from megatron_resrl.checkpoint import (
    CheckpointSaver,
    Retention,
    TrainerState,
    checkpoint_to_resume,
    load_checkpoint,
    policy_state,
)
from megatron_resrl.config import schema
from megatron_resrl.platform.distributed import initialize
from megatron_resrl.policy.batches import TokenBatch, TokenSequence
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.worker import build_policy


def write_model(directory: Path) -> None:
    """A random Llama of SmolLM2-135M's shape."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(directory)


def build(model: Path) -> Policy:
    """The policy of a model, with an optimizer."""
    recipe = schema.Recipe(
        model=schema.ModelConfig(str(model)),
        precision=schema.PrecisionConfig("fp32"),
        optimizer=schema.OptimizerConfig(lr=1e-5, lr_warmup_steps=0),
    )
    initialize(recipe.parallel, 0)
    return build_policy(recipe)


def take_step(policy: Policy, settings: argparse.Namespace) -> float:
    """Seconds of one update."""
    generator = torch.Generator().manual_seed(0)
    size = (settings.sequences, settings.tokens)
    drawn = torch.randint(policy.hf_config.vocab_size, size, generator=generator).tolist()
    half = settings.tokens // 2
    sequences = [TokenSequence(tuple(row[:half]), tuple(row[half:])) for row in drawn]
    began = time.perf_counter()
    policy.update(
        policy.micro_batches(TokenBatch.from_sequences(sequences), settings.sequences),
        lambda log_probs, *_: (-log_probs.mean(), None),
    )
    return time.perf_counter() - began


def saver_of(policy: Policy, folder: Path, *, background: bool) -> CheckpointSaver:
    """A saver that keeps one checkpoint."""
    return CheckpointSaver(
        folder,
        policy,
        Retention(1),
        background=background,
        timeout=datetime.timedelta(minutes=30),
        on_saved=lambda step: None,
    )


def measure_saving(policy: Policy, settings: argparse.Namespace, work: Path) -> dict[str, float]:
    """Medians over the repeats; a step without a save, and one beside which files are written."""
    waiting = saver_of(policy, work / "waiting", background=False)
    background = saver_of(policy, work / "background", background=True)
    plain: list[float] = []
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for number in range(1, settings.repeats + 1):
        plain.append(take_step(policy, settings))
        waiting.save(TrainerState(number, {}))
        note("waiting", waiting.times()["blocking"])
        plain.append(take_step(policy, settings))
        background.save(TrainerState(number, {}))
        note("background, held up", background.times()["blocking"])
        steps = []
        while background.saving:
            steps.append(take_step(policy, settings))
            background.poll()
        note("background, written", background.times()["write"])
        plain.append(take_step(policy, settings))
        usual = len(steps) * statistics.median(plain)
        note("background, lost by steps", max(0.0, sum(steps) - usual))
        note("background, steps meanwhile", len(steps))
    medians = {name: statistics.median(values) for name, values in found.items()}
    medians["step"] = statistics.median(plain)
    return medians


def measure_peers(policy: Policy, settings: argparse.Namespace, work: Path) -> dict[str, float]:
    """Seconds of torch.save and of megatron-core's default strategy for the same state."""
    optimizer = policy.optimizer.chained_optimizers[0]
    tensors = [dict(policy.modules[0].named_parameters()), optimizer.get_parameters()]
    tensors.append(optimizer.optimizer.state_dict())

    def plain() -> None:
        with (work / "plain.pt").open("wb") as file:
            torch.save(tensors, file)
            os.fsync(file.fileno())

    def megatron() -> None:
        shutil.rmtree(work / "megatron", ignore_errors=True)
        (work / "megatron").mkdir()
        state = policy_state.sharded_state(policy, is_loading=False, with_optimizer=True)
        dist_checkpointing.save(state, str(work / "megatron"))

    return {
        "torch.save": _median(plain, settings.repeats),
        "megatron-core": _median(megatron, settings.repeats),
    }


def measure_loading(policy: Policy, settings: argparse.Namespace, work: Path) -> dict[str, float]:
    """Medians of reading a checkpoint, and of checking its checksums."""
    folder = work / "background"
    path = checkpoint_to_resume(folder, verify_checksums=False)

    def verify() -> None:
        checkpoint_to_resume(folder, verify_checksums=True)

    return {
        "load": _median(lambda: load_checkpoint(path, policy), settings.repeats),
        "verify": _median(verify, settings.repeats),
    }


def measure_resume(settings: argparse.Namespace, work: Path) -> dict[str, float]:
    """Seconds from the start of a process to the end of its first step, and their parts."""
    command = [sys.executable, __file__, "--resume", str(work / "background")]
    for name in ("model", "sequences", "tokens", "threads"):
        command += [f"--{name}", str(getattr(settings, name))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def resume(settings: argparse.Namespace) -> None:
    """What the process of `measure_resume` does."""
    started = psutil.Process().create_time()
    moments = {"start and imports": time.time()}
    policy = build(settings.model)
    moments["model"] = time.time()
    path = checkpoint_to_resume(settings.resume, verify_checksums=True)
    moments["checksums"] = time.time()
    load_checkpoint(path, policy)
    moments["load"] = time.time()
    take_step(policy, settings)
    moments["first step"] = time.time()
    seconds, before = {}, started
    for name, moment in moments.items():
        seconds[name], before = moment - before, moment
    print(json.dumps(seconds | {"total": before - started}))


def _median(action: Callable[[], None], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def report(found: dict[str, dict[str, float]], size: int, where: str, model: str) -> str:
    """The page of results."""
    saving, peers, loading, resuming = (found[n] for n in ("saving", "peers", "loading", "resume"))
    blocking = saving["background, held up"] + saving["background, lost by steps"]

    def row(what: str, seconds: float) -> str:
        return f"| {what} | {seconds:.2f} | {size / seconds / 1e9:.2f} |"

    return "\n".join(
        [
            "# Saving and loading a checkpoint",
            "",
            f"`python benchmarks/checkpoint.py`, {where}. {model}, fp32, one rank: a checkpoint of "
            f"{size / 1e9:.2f} GB (weights, masters, moments). Medians.",
            "",
            "| | s | GB/s |",
            "|---|---|---|",
            row("save, training waits (checksums and fsync included)", saving["waiting"]),
            row("save in the background, until it is published", saving["background, written"]),
            row("peer: torch.save into one file, fsync", peers["torch.save"]),
            row("peer: megatron-core's dist_checkpointing.save", peers["megatron-core"]),
            row("compare with the checksums", loading["verify"]),
            row("load", loading["load"]),
            "",
            "| time that a save blocks training | s |",
            "|---|---|",
            f"| training waits | {saving['waiting']:.2f} |",
            f"| in the background | {blocking:.2f} |",
            f"| ... held up for copies | {saving['background, held up']:.2f} |",
            f"| ... lost by {saving['background, steps meanwhile']:.0f} steps of "
            f"{saving['step']:.2f} s meanwhile | {saving['background, lost by steps']:.2f} |",
            "",
            "| resuming, from the start of the process | s |",
            "|---|---|",
            *(f"| {name} | {seconds:.2f} |" for name, seconds in resuming.items()),
            "",
            f"save_over_torch_save={saving['waiting'] / peers['torch.save']:.2f} "
            f"save_over_megatron_core={saving['waiting'] / peers['megatron-core']:.2f} "
            f"blocking_in_background_over_waiting={blocking / saving['waiting']:.2f}",
        ]
    )


def main() -> None:
    """Measures, and prints the page of results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="Hugging Face directory")
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, help="also write the report to this file")
    parser.add_argument("--resume", type=Path, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    if settings.resume:
        resume(settings)
        return
    where = describe(("torch", "megatron-core"), settings.threads)
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        name = str(settings.model) if settings.model else "A random Llama of SmolLM2-135M's size"
        if settings.model is None:
            settings.model = work / "model"
            write_model(settings.model)
        policy = build(settings.model)
        take_step(policy, settings)  # warm-up: optimizer states, allocator
        found = {"saving": measure_saving(policy, settings, work)}
        found["peers"] = measure_peers(policy, settings, work)
        found["loading"] = measure_loading(policy, settings, work)
        latest = checkpoint_to_resume(work / "background", verify_checksums=False)
        size = sum(file.stat().st_size for file in latest.rglob("*") if file.is_file())
        found["resume"] = measure_resume(settings, work)
    text = report(found, size, where, name)
    print(text)
    if settings.output:
        settings.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
