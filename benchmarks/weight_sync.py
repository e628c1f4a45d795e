"""New weights for a vLLM server: buckets through its weight-transfer API against save and reload.

    python benchmarks/weight_sync.py [--vllm-python PYTHON] [--output FILE]

One rank on CPU, one vLLM server on the same machine, random Llama models. `sync` is
`WeightSender.send` with the `file` back end: pause, all buckets, caches reset, resume. The peer
needs none of our code in the server: the weights are saved as a Hugging Face directory on the same
file system, then vLLM's own `/collective_rpc reload_weights` reads it, and the cache is reset.
Each is repeated in turn.
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
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import describe

from megatron_resrl.config import schema
from megatron_resrl.platform.distributed import initialize
from megatron_resrl.rollout.serving.needed_model import NeededModel
from megatron_resrl.rollout.weight_sync.backends import server_arguments
from megatron_resrl.rollout.weight_sync.control import ServerControl, ServerFailure
from megatron_resrl.rollout.weight_sync.sender import build_sender
from megatron_resrl.rollout.weight_sync.stream import ServedWeights
from megatron_resrl.rollout.worker import build_policy

SIZES: dict[str, dict[str, Any]] = {
    "50M": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8},
    "135M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 14},
    "350M": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24},
}
CASES = (("50M", "bf16"), ("135M", "bf16"), ("350M", "bf16"), ("135M", "fp32"))
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def write_model(directory: Path, size: str, precision: str) -> None:
    """A random Llama."""
    heads = SIZES[size]["hidden_size"] // 64
    config = LlamaConfig(
        **SIZES[size],
        vocab_size=32000,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(DTYPES[precision]).save_pretrained(directory)


@contextlib.contextmanager
def server(python: str, model: Path, log: Path, recipe: schema.Recipe) -> Iterator[ServerControl]:
    """A vLLM server until the block ends."""
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
        yield control
    finally:
        process.terminate()
        process.wait(60)


def save_and_reload(weights: ServedWeights, control: ServerControl, directory: Path) -> None:
    """The peer; the directory has the configuration already."""
    seen: set[int] = set()
    tensors = {}
    for name, tensor in weights:
        # Copies of what shares memory alone, as our sender makes them.
        own = tensor.contiguous()
        storage = own.untyped_storage().data_ptr()
        tensors[name] = own.clone() if storage in seen else own
        seen.add(storage)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    arguments = {"weights_path": str(directory)}
    control.post("/collective_rpc", {"method": "reload_weights", "kwargs": arguments})
    control.post("/reset_prefix_cache", params={"reset_running_requests": "true"})


def seconds_of(action: Callable[[], object]) -> float:
    """Seconds that an action takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def measure(size: str, precision: str, settings: argparse.Namespace) -> dict[str, Any]:
    """Medians of one model, and the least and the largest ratio of a sync to the peer after it."""
    with tempfile.TemporaryDirectory(dir=settings.transfer_dir) as folder:
        model = Path(folder) / "model"
        write_model(model, size, precision)
        recipe = schema.Recipe(
            model=schema.ModelConfig(str(model)),
            precision=schema.PrecisionConfig(precision),
            vllm=schema.VllmConfig(
                weight_transfer="file",
                transfer_dir=settings.transfer_dir,
                bucket_bytes=settings.bucket_bytes,
            ),
        )
        initialize(recipe.parallel, 0)
        policy = build_policy(recipe, trainable=False)
        needed = NeededModel.of(recipe.model, recipe.precision, recipe.data, recipe.rollout)
        sender = build_sender(policy, needed, recipe.vllm, recipe.rollout)
        with server(settings.vllm_python, model, Path(folder) / "log", recipe) as control:
            weights = ServedWeights(policy)
            found = sender.send([control], 0)  # warm-up
            if found.failed:
                sys.exit((Path(folder) / "log").read_text()[-3000:])
            syncs, peers = [], []
            for version in range(1, settings.repeats + 1):
                syncs.append(sender.send([control], version).seconds)
                peers.append(seconds_of(lambda: save_and_reload(weights, control, model)))
            exported = seconds_of(lambda: [None for _ in weights])
    return {
        "bytes": found.num_bytes,
        "sync": statistics.median(syncs),
        "peer": statistics.median(peers),
        "export": exported,
        "ratios": [sync / peer for sync, peer in zip(syncs, peers, strict=True)],
    }


def report(
    found: dict[tuple[str, str], dict[str, Any]], where: str, settings: argparse.Namespace
) -> str:
    """The page of results."""
    rows = []
    for (size, precision), one in found.items():
        rows.append(
            f"| {size} {precision} | {one['bytes'] / 1e6:.0f} | {one['sync']:.2f} "
            f"| {one['bytes'] / one['sync'] / 1e9:.2f} | {one['export']:.2f} | {one['peer']:.2f} "
            f"| {one['sync'] / one['peer']:.2f} "
            f"({min(one['ratios']):.2f} to {max(one['ratios']):.2f}) |"
        )
    return "\n".join(
        [
            "# New weights for a vLLM server",
            "",
            f"`python benchmarks/weight_sync.py`, {where}. One rank and one server on the same "
            f"cores, random Llama models, buckets of {settings.bucket_bytes / 2**20:.0f} MiB in "
            f"shared memory. Medians of {settings.repeats} runs in turn, and the least and the "
            "largest ratio of two runs. `export` is the part of a sync in which the trainer makes "
            "Hugging Face tensors.",
            "",
            "| model | MB | sync, s | GB/s | export, s | save + reload_weights, s | sync / peer |",
            "|---|---|---|---|---|---|---|",
            *rows,
        ]
    )


def main() -> None:
    """Measures each model, and prints the page of results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = os.environ.get("MEGATRON_RESRL_VLLM_PYTHON", sys.executable)
    parser.add_argument("--vllm-python", default=default, help="interpreter that has vLLM")
    parser.add_argument("--transfer-dir", default="/dev/shm")
    parser.add_argument("--bucket-bytes", type=int, default=64 * 2**20)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, help="also write the report to this file")
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    where = describe(("torch", "megatron-core"), settings.threads)
    found = {case: measure(*case, settings) for case in CASES}
    text = report(found, where, settings)
    print(text)
    if settings.output:
        settings.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
