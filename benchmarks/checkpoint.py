"""Saving and loading a run: in the background, while training waits, and as others do it.

    python benchmarks/checkpoint.py [--model DIR] [--output FILE]

One rank, fp32, AdamW with megatron-core's distributed optimizer: a checkpoint holds weights,
masters and both moments. The model is a Hugging Face directory, or by default a random Llama of
SmolLM2-135M's size. A step is an update on `--sequences` sequences of `--tokens` tokens.

* `blocking`: seconds that a save holds up training; in the background also what the steps taken
  while files are written lose by it, against steps without a save, taken in turn.
* CPU seconds are of all threads and helper processes; beside training, those that a save adds to
  its steps.
* Memory is the peak of the resident set above what it was before; in the background above the
  peak of a step without a save.
* Peers, of the same state in the same run and in turn with it: `torch.save` of all tensors into
  one file, synced to disk, and megatron-core's own `dist_checkpointing.save`, which starts helper
  processes: of the state that loads in any layout (`fully_reshardable`), and of the one that loads
  with any number of replicas of the same layout (`dp_reshardable`).
* Resuming: from the start of a process (`python`, imports, model, verification of checksums,
  loading) to the end of its first step, in a process of its own.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from megatron.core import dist_checkpointing, parallel_state
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import command, describe

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


class Cost(NamedTuple):
    """What something takes."""

    seconds: float
    cpu: float
    """CPU seconds of all threads, and of child processes that have ended."""
    memory: float
    """Bytes at the peak of the resident set above those before."""


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


def median(costs: list[Cost]) -> Cost:
    """Each number's median."""
    return Cost(*map(statistics.median, zip(*costs, strict=True)))


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


@dataclass
class Saving:
    """The repeats of each way to save."""

    costs: dict[str, list[Cost]] = field(default_factory=dict)
    """By name; `step` is a step without a save, `background` what a save beside steps takes from
    them, `held up` the part of it before the steps go on."""
    steps: list[int] = field(default_factory=list)
    """Taken while files were written in the background."""
    written: list[float] = field(default_factory=list)
    """Seconds from then on until the checkpoint was published."""

    def note(self, name: str, cost: Cost) -> Cost:
        """Keeps a repeat."""
        self.costs.setdefault(name, []).append(cost)
        return cost


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
        steps = 0
        times: dict[str, float] = {}

        def take_steps() -> None:
            nonlocal steps, times
            while "write" not in times:
                take_step(policy, settings)
                steps += 1
                background.poll()
                times |= background.times()

        beside = meter.cost(take_steps)
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
    return found


def peers_of(policy: Policy, work: Path) -> dict[str, Callable[[], None]]:
    """How others save the same state."""
    optimizer = policy.optimizer.chained_optimizers[0]

    def plain() -> None:
        tensors = [dict(policy.modules[0].named_parameters()), optimizer.get_parameters()]
        tensors.append(optimizer.optimizer.state_dict())
        with (work / "plain.pt").open("wb") as file:
            torch.save(tensors, file)
            os.fsync(file.fileno())

    def megatron(kind: str) -> None:
        shutil.rmtree(work / "megatron", ignore_errors=True)
        (work / "megatron").mkdir()
        metadata = {
            "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
            "distrib_optim_sharding_type": kind,
            "chained_optim_avoid_prefix": True,
        }
        state = {"model": policy.modules[0].sharded_state_dict(metadata=metadata)}
        state["optimizer"] = policy.optimizer.sharded_state_dict(state, metadata=metadata)
        dist_checkpointing.save(state, str(work / "megatron"))

    return {
        "torch.save": plain,
        "fully_reshardable": lambda: megatron("fully_reshardable"),
        "dp_reshardable": lambda: megatron("dp_reshardable"),
    }


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


def report(
    saving: Saving,
    loading: dict[str, float],
    resuming: dict[str, float],
    size: int,
    where: str,
    model: str,
) -> str:
    """The page of results."""
    costs = {name: median(found) for name, found in saving.costs.items()}
    waiting, background, held, step = (
        costs[name] for name in ("waiting", "background", "held up", "step")
    )

    def row(what: str, cost: Cost) -> str:
        return (
            f"| {what} | {cost.seconds:.2f} | {size / cost.seconds / 1e9:.2f} | {cost.cpu:.2f} | "
            f"{cost.memory / size:.2f} |"
        )

    def read_row(what: str, seconds: float) -> str:
        return f"| {what} | {seconds:.2f} | {size / seconds / 1e9:.2f} | | |"

    return "\n".join(
        [
            "# Saving and loading a checkpoint",
            "",
            f"`{command()}`, {where}. {model}, fp32, one rank: a checkpoint of {size / 1e9:.2f} GB "
            f"(weights, masters, moments). Medians of {len(saving.written)}, taken in turn.",
            "",
            "| | s | GB/s | CPU s | extra memory / state |",
            "|---|---|---|---|---|",
            row("save, training waits (checksums and fsync included)", waiting),
            row("peer: torch.save into one file, fsync", costs["torch.save"]),
            row("peer: megatron-core's save, `fully_reshardable`", costs["fully_reshardable"]),
            row("peer: megatron-core's save, `dp_reshardable`", costs["dp_reshardable"]),
            read_row("compare with the checksums", loading["verify"]),
            read_row("load", loading["load"]),
            "",
            "| save in the background | |",
            "|---|---|",
            f"| stolen from training, s | {background.seconds:.2f} |",
            f"| ... held up for copies, s | {held.seconds:.2f} |",
            f"| ... lost by {statistics.median(saving.steps):.0f} steps of {step.seconds:.2f} s "
            "meanwhile, s | "
            f"{background.seconds - held.seconds:.2f} |",
            f"| CPU seconds beside those of the steps | {background.cpu:.2f} |",
            f"| until it is published, s | {statistics.median(saving.written):.2f} |",
            f"| extra memory / state | {background.memory / size:.2f} |",
            "",
            "| resuming, from the start of the process | s |",
            "|---|---|",
            *(f"| {name} | {seconds:.2f} |" for name, seconds in resuming.items()),
            "",
            f"stolen_s={background.seconds:.2f} "
            f"extra_memory={background.memory / size:.2f} "
            f"save_over_torch_save={waiting.seconds / costs['torch.save'].seconds:.2f} "
            "save_over_megatron_core="
            f"{waiting.seconds / costs['fully_reshardable'].seconds:.2f} "
            "save_over_megatron_core_dp_reshardable="
            f"{waiting.seconds / costs['dp_reshardable'].seconds:.2f}",
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
        with start_up_left_alone():  # As in every run.
            saving = measure_saving(policy, settings, work)
        loading = measure_loading(policy, settings, work)
        latest = checkpoint_to_resume(work / "background", verify_checksums=False)
        size = sum(file.stat().st_size for file in latest.rglob("*") if file.is_file())
        resuming = measure_resume(settings, work)
    text = report(saving, loading, resuming, size, where, name)
    print(text)
    if settings.output:
        settings.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
