"""Saving and loading a run: in the background, while training waits, and as others do it.

    python benchmarks/checkpoint.py [--model DIR] [--output FILE]

One rank, fp32, AdamW with megatron-core's distributed optimizer: a checkpoint holds weights,
masters and both moments. The model is a Hugging Face directory, or by default a random Llama of
SmolLM2-135M's size. A step is an update on `--sequences` sequences of `--tokens` tokens.

* `blocking`: seconds that a save holds up training; in the background also what the steps taken
  while files are written lose by it, against steps without a save, taken in turn.
* CPU seconds are of all threads and helper processes; beside training, those that a save adds to
  its steps.
* Memory is the peak of the resident set above what it was before, in the background above that of a
  step without a save; the most of all repeats, since a save uses the memory of the one before.
* Peers, of the same state in the same run and in turn with it: `torch.save` of all tensors into
  one file, synced to disk, and megatron-core's own `dist_checkpointing.save`, which starts helper
  processes: of the state that loads in any layout (`fully_reshardable`), and of the one that loads
  with any number of replicas of the same layout (`dp_reshardable`). Beside steps, a thread that
  writes as many bytes of zeros as a save and does nothing else: what the machine takes for that.
* Resuming: from the start of a process (`python`, imports, model, verification of checksums,
  loading) to the end of its first step, in a process of its own.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from checkpoint_peers import peers_of, write_bytes
from checkpoint_report import Cost, Saving, median, report
from machine import describe

from megatron_resrl.checkpoint import (
    CheckpointSaver,
    Retention,
    TrainerState,
    checkpoint_to_resume,
    load_checkpoint,
)
from megatron_resrl.config import schema
from megatron_resrl.platform.distributed import initialize
from megatron_resrl.platform.garbage import start_up_left_alone
from megatron_resrl.platform.memory_peaks import ResidentPeaks
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


class Meter:
    """Measures one action at a time."""

    def __init__(self) -> None:
        self._peaks = ResidentPeaks()

    def cost(self, action: Callable[[], Any]) -> Cost:
        """What a call takes."""
        self._peaks.take()
        before = self._peaks.take()
        began, cpu = time.perf_counter(), _cpu_seconds()
        action()
        seconds, cpu = time.perf_counter() - began, _cpu_seconds() - cpu
        return Cost(seconds, cpu, self._peaks.take() - before)


def _cpu_seconds() -> float:
    used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def take_step(policy: Policy, settings: argparse.Namespace) -> None:
    """One update."""
    generator = torch.Generator().manual_seed(0)
    size = (settings.sequences, settings.tokens)
    drawn = torch.randint(policy.hf_config.vocab_size, size, generator=generator).tolist()
    half = settings.tokens // 2
    sequences = [TokenSequence(tuple(row[:half]), tuple(row[half:])) for row in drawn]
    policy.update(
        policy.micro_batches(TokenBatch.from_sequences(sequences), settings.sequences),
        lambda log_probs, *_: (-log_probs.mean(), None),
    )


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


def measure_saving(policy: Policy, settings: argparse.Namespace, work: Path) -> Saving:
    """Saves in each way in turn."""
    found, meter = Saving(), Meter()
    waiting = saver_of(policy, work / "waiting", background=False)
    background = saver_of(policy, work / "background", background=True)
    peers = peers_of(policy, work)

    def step() -> None:
        found.note("step", meter.cost(lambda: take_step(policy, settings)))

    for number in range(1, settings.repeats + 1):
        state = TrainerState(number, {})
        step()
        found.note("waiting", meter.cost(lambda state=state: waiting.save(state)))
        step()
        held = found.note("held up", meter.cost(lambda state=state: background.save(state)))
        times: dict[str, float] = {}

        def is_written(times: dict[str, float] = times) -> bool:
            background.poll()
            times |= background.times()
            return "write" in times

        beside, steps = steps_until(is_written, meter, policy, settings)
        step()
        usual = median(found.costs["step"])
        found.note(
            "background",
            Cost(
                held.seconds + max(0.0, beside.seconds - steps * usual.seconds),
                held.cpu + max(0.0, beside.cpu - steps * usual.cpu),
                # The copies are there before the steps go on.
                held.memory + max(0.0, beside.memory - usual.memory),
            ),
        )
        found.steps.append(steps)
        found.written.append(times["write"])
        for name, action in peers.items():
            found.note(name, meter.cost(action))
        size = folder_size(checkpoint_to_resume(work / "background", verify_checksums=False))
        writer = threading.Thread(target=write_bytes, args=(work / "bytes", size))
        writer.start()
        beside, steps = steps_until(
            lambda writer=writer: not writer.is_alive(), meter, policy, settings
        )
        lost = beside.seconds - steps * usual.seconds
        found.note("bytes", Cost(lost, beside.cpu - steps * usual.cpu, beside.memory))
    return found


def steps_until(
    done: Callable[[], bool], meter: Meter, policy: Policy, settings: argparse.Namespace
) -> tuple[Cost, int]:
    """Takes steps while something goes on beside them: their cost and their number."""
    steps = 0

    def take_steps() -> None:
        nonlocal steps
        while not done():
            take_step(policy, settings)
            steps += 1

    return meter.cost(take_steps), steps


def folder_size(folder: Path) -> int:
    """Bytes of all files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def measure_loading(policy: Policy, settings: argparse.Namespace, work: Path) -> dict[str, float]:
    """Medians of reading a checkpoint, and of checking its checksums."""
    folder = work / "background"
    path = checkpoint_to_resume(folder, verify_checksums=False)

    def verify() -> None:
        checkpoint_to_resume(folder, verify_checksums=True)

    return {
        "load": _median_seconds(lambda: load_checkpoint(path, policy), settings.repeats),
        "verify": _median_seconds(verify, settings.repeats),
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


def _median_seconds(action: Callable[[], None], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


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
        with start_up_left_alone():  # As in every run.
            saving = measure_saving(policy, settings, work)
        loading = measure_loading(policy, settings, work)
        latest = checkpoint_to_resume(work / "background", verify_checksums=False)
        written = folder_size(latest)
        size = 16 * sum(p.numel() for module in policy.modules for p in module.parameters())
        resuming = measure_resume(settings, work)
    text = report(saving, loading, resuming, size, written, where, name)
    print(text)
    if settings.output:
        settings.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
