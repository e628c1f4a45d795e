"""New weights for a vLLM server: its weight-transfer API against save and reload.

    python benchmarks/weight_sync.py [--vllm-python PYTHON] [--models 50M,135M] [--output FILE]

One rank on CPU, one vLLM server on the same machine, random Llama models that take a real optimizer
step (Adam, learning rate 1e-6) in every round. Then, in turn:

- `delta`: `WeightSender.send` with the `file` back end and `weight_transfer_delta: auto`;
- the peer, which needs none of our code in the server: the weights are saved as a Hugging Face
  directory on the same file system, then vLLM's own `/collective_rpc reload_weights` reads it, and
  the cache is reset;
- `full`: a send with `weight_transfer_delta: never`;
- `first`: a send of all weights that trainer and server keep, as at the start of a run.

A send pauses the server, sends all buckets, resets the cache and resumes. Seconds are those of the
clock, and the CPU seconds of both processes, which other programs on the machine hardly change.
The last line has the medians of the ratios to the peer of the same round, for the largest model.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import psutil
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import command, describe

from megatron_resrl.config import schema
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.platform.distributed import initialize
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.serving.needed_model import NeededModel
from megatron_resrl.rollout.weight_sync.backends import server_arguments
from megatron_resrl.rollout.weight_sync.control import ServerControl, ServerFailure
from megatron_resrl.rollout.weight_sync.sender import build_sender
from megatron_resrl.rollout.weight_sync.stream import ServedWeights
from megatron_resrl.rollout.worker import build_policy
from megatron_resrl.training.pretrain import batch_of
from megatron_resrl.training.supervised import supervised_step

SIZES: dict[str, dict[str, Any]] = {
    "50M": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8},
    "135M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 14},
    "350M": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24},
}
WAYS = ("delta", "peer", "full", "first")
VOCABULARY, TOKENS, LEARNING_RATE = 32000, 64, 1e-6
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def write_model(directory: Path, size: str, precision: str) -> None:
    """A random Llama."""
    heads = SIZES[size]["hidden_size"] // 64
    config = LlamaConfig(
        **SIZES[size],
        vocab_size=VOCABULARY,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(DTYPES[precision]).save_pretrained(directory)


@contextlib.contextmanager
def server(
    python: str, model: Path, log: Path, recipe: schema.Recipe
) -> Iterator[tuple[ServerControl, int]]:
    """A vLLM server until the block ends, and its process number."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    arguments, environment = server_arguments(recipe.vllm, recipe.rollout.placement)
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--host", "127.0.0.1", "--port", port, "--enforce-eager"]
    command += ["--max-model-len", "512", "--skip-tokenizer-init", *arguments]
    environment |= {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(os.cpu_count()),
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=os.environ | environment, stdout=output, stderr=subprocess.STDOUT
        )
    control = ServerControl(f"http://127.0.0.1:{port}", timeout_s=300)
    try:
        while True:
            try:
                control.get("/health", timeout_s=5)
                break
            except ServerFailure:
                if process.poll() is not None:
                    sys.exit(f"the server ended:\n{log.read_text()[-3000:]}")
                time.sleep(0.5)
        yield control, process.pid
    finally:
        process.terminate()
        process.wait(60)


def save_and_reload(weights: ServedWeights, control: ServerControl, directory: Path) -> None:
    """The peer; the directory has the configuration already."""
    seen: set[int] = set()
    tensors = {}
    for name, tensor in weights.once():
        # Copies of what shares memory alone, as our sender makes them.
        own = tensor.contiguous()
        storage = own.untyped_storage().data_ptr()
        tensors[name] = own.clone() if storage in seen else own
        seen.add(storage)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    arguments = {"weights_path": str(directory)}
    control.post("/collective_rpc", {"method": "reload_weights", "kwargs": arguments})
    control.post("/reset_prefix_cache", params={"reset_running_requests": "true"})


class Costs:
    """Times of an action: of the clock, and of the CPUs in trainer and server."""

    def __init__(self, server: int) -> None:
        """
        Args:
            server: Process number of the server, whose workers are its descendants.
        """
        self._server = psutil.Process(server)

    def of(self, action: Callable[[], Any]) -> tuple[float, float, Any]:
        """Clock seconds and CPU seconds of an action, and its result."""
        began, cpu = time.perf_counter(), self._cpu_seconds()
        result = action()
        return time.perf_counter() - began, self._cpu_seconds() - cpu, result

    def _cpu_seconds(self) -> float:
        processes = [self._server, *self._server.children(recursive=True)]
        times = [process.cpu_times() for process in processes]
        return time.process_time() + sum(each.user + each.system for each in times)


def update(policy: Policy, generator: numpy.random.Generator) -> None:
    """A step of the optimizer on random tokens."""
    tokens = generator.integers(VOCABULARY, size=(2, TOKENS + 1))
    batch = batch_of([[row] for row in tokens], 2, document_mask=False)
    supervised_step(policy, batch, 0.0, PhaseTimers())


def recipe_of(model: Path, precision: str, settings: argparse.Namespace) -> schema.Recipe:
    """A recipe that sends through files."""
    return schema.Recipe(
        model=schema.ModelConfig(str(model)),
        precision=schema.PrecisionConfig(precision),
        optimizer=schema.OptimizerConfig(lr=LEARNING_RATE, lr_warmup_steps=0),
        vllm=schema.VllmConfig(
            weight_transfer="file",
            transfer_dir=settings.transfer_dir,
            bucket_bytes=settings.bucket_bytes,
        ),
    )


def measure(size: str, precision: str, settings: argparse.Namespace) -> dict[str, Any]:
    """One model: (clock, CPU seconds) of each way in each round, bytes, and the share changed."""
    with tempfile.TemporaryDirectory(dir=settings.transfer_dir) as folder:
        model = Path(folder) / "model"
        write_model(model, size, precision)
        recipe = recipe_of(model, precision, settings)
        initialize(recipe.parallel, 0)
        policy = build_policy(recipe)
        needed = NeededModel.of(recipe.model, recipe.precision, recipe.data, recipe.rollout)
        keeping = build_sender(policy, needed, recipe.vllm, recipe.rollout)
        never = replace(recipe.vllm, weight_transfer_delta="never")
        simple = build_sender(policy, needed, never, recipe.rollout)
        weights = ServedWeights(policy)
        generator = numpy.random.default_rng(0)
        times: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        shares, sizes = [], []
        with server(settings.vllm_python, model, Path(folder) / "log", recipe) as (control, pid):
            costs = Costs(pid)
            ways: dict[str, Callable[[], Any]] = {
                "delta": lambda: keeping.send([control], 1),
                "peer": lambda: save_and_reload(weights, control, model),
                "full": lambda: simple.send([control], 1),
                "first": lambda: keeping.send([control], 1),
            }
            for way in ("first", "peer", "full", "first"):  # warm-up
                ways[way]()
            for _ in range(settings.repeats):
                update(policy, generator)
                for way, action in ways.items():
                    if way == "full":
                        action()  # The server gives up the bytes that it has kept for deltas.
                    seconds, cpu, report = costs.of(action)
                    if report is not None and report.failed:
                        sys.exit((Path(folder) / "log").read_text()[-3000:])
                    times[way].append((seconds, cpu))
                    if way == "delta":
                        sizes.append(report.sent_bytes)
                        # Not compared once most of the weights have changed, as in fp32.
                        shares += [report.changed_fraction] * (report.changed_fraction is not None)
            export = costs.of(lambda: [None for _ in weights.once()])[:2]
            plan = costs.of(lambda: ServedWeights(policy).tensors)[:2]
    return {
        "bytes": weights.num_bytes,
        "sent": statistics.median(sizes),
        "changed": statistics.median(shares),
        "times": times,
        "export": export,
        "plan": plan,
    }


def ratios(one: dict[str, Any], way: str, kind: int) -> list[float]:
    """Of a way to the peer in each round; `kind` 0: clock, 1: CPU seconds."""
    pairs = zip(one["times"][way], one["times"]["peer"], strict=True)
    return [mine[kind] / peer[kind] for mine, peer in pairs]


def report(
    found: dict[tuple[str, str], dict[str, Any]], where: str, settings: argparse.Namespace
) -> str:
    """The page of results."""
    rows, spread = [], []
    for (size, precision), one in found.items():
        medians = [
            " / ".join(f"{statistics.median(kind):.2f}" for kind in zip(*times, strict=True))
            for times in one["times"].values()
        ]
        rows.append(
            f"| {size} {precision} | {one['bytes'] / 1e6:.0f} | {one['sent'] / 1e6:.1f} "
            f"| {100 * one['changed']:.1f} % | {' | '.join(medians)} "
            f"| {one['export'][1]:.3f} + {one['plan'][1]:.3f} |"
        )
        each = [ratios(one, way, kind) for way in WAYS if way != "peer" for kind in (0, 1)]
        cells = [f"{statistics.median(r):.2f} ({min(r):.2f} to {max(r):.2f})" for r in each]
        spread.append(f"| {size} {precision} | {' | '.join(cells)} |")
    last = list(found.values())[-1]
    summary = " ".join(
        f"{way}_{name}_ratio={statistics.median(ratios(last, way, kind)):.2f}"
        for way in WAYS
        if way != "peer"
        for kind, name in enumerate(("clock", "cpu"))
    )
    return "\n".join(
        [
            "# New weights for a vLLM server",
            "",
            f"`{command()}`, {where}. One rank and one server on the same "
            f"cores, random Llama models, buckets of {settings.bucket_bytes / 2**20:.0f} MiB in "
            f"shared memory, one optimizer step at a learning rate of {LEARNING_RATE:g} before "
            f"every round of {settings.repeats}. Medians, clock / CPU seconds of trainer and "
            "server together. `export`: CPU seconds in which the trainer makes Hugging Face "
            "tensors, at every send, + in which it plans that, once per run.",
            "",
            "| model | MB | MB of a delta | bytes that changed | delta, s | save and reload, s "
            "| full, s | first, s | export, s |",
            "|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            "Ratios to save and reload in the same round: median (least to largest).",
            "",
            "| model | delta, clock | delta, CPU | full, clock | full, CPU | first, clock "
            "| first, CPU |",
            "|---|---|---|---|---|---|---|",
            *spread,
            "",
            f"`{summary}`",
        ]
    )


def main() -> None:
    """Measures each model, and prints the page of results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = os.environ.get("MEGATRON_RESRL_VLLM_PYTHON", sys.executable)
    parser.add_argument("--vllm-python", default=default, help="interpreter that has vLLM")
    parser.add_argument("--transfer-dir", default="/dev/shm")
    parser.add_argument("--bucket-bytes", type=int, default=64 * 2**20)
    parser.add_argument("--models", default="50M-bf16,135M-fp32,135M-bf16,350M-bf16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, help="also write the report to this file")
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    where = describe(("torch", "megatron-core"), settings.threads)
    cases = [tuple(case.split("-")) for case in settings.models.split(",")]
    found = {(size, precision): measure(size, precision, settings) for size, precision in cases}
    text = report(found, where, settings)
    print(text)
    if settings.output:
        settings.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
