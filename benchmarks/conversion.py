"""Time and memory of converting a model's checkpoints, beside copying the same bytes.

    python benchmarks/conversion.py MODEL [--runs 3] [--output benchmarks/results/conversion.md]
    python benchmarks/conversion.py --synthetic 1b

MODEL is a Hugging Face directory with safetensors (examples/quickstart/prepare.py makes one of
SmolLM2-135M). `--synthetic` first writes a Llama-shaped one with random bfloat16 weights in files
of at most 1 GB: 1b has 1.1 billion parameters, `tiny` is for trying the script.

Four ways, one after the other, `--runs` times round; the medians are reported:

* copy: every safetensors file read and written, 16 MB at a time, and synced.
* to Megatron: `convert_hf_to_megatron` (torch_dist for TP2 x PP1; synced).
* to Hugging Face: `convert_megatron_to_hf` of that.
* transformers: `from_pretrained` and `save_pretrained` in the file's dtype, which holds the model.

Each run is a forked process with one thread, everything imported and the file cache warm. Memory is
its peak resident memory beyond what it inherited. The files are compared with the original once,
tensor by tensor. The last line has the ratios, ours over the others': below 1 is better.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import describe

from megatron_resrl.platform.cpu import adapt_megatron_core

SHAPES = {
    "tiny": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 8},
    "1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22},
}
BUFFER = 16 * 2**20


@dataclass(frozen=True)
class Run:
    """One way, once."""

    seconds: float
    memory: int
    """Bytes beyond what the process inherited."""


def write_synthetic(name: str, path: Path) -> None:
    """A Llama-shaped model with random weights and 32,000 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32000,
        num_attention_heads=16,
        num_key_value_heads=4,
        tie_word_embeddings=False,
        dtype=torch.bfloat16,
        **SHAPES[name],
    )
    torch.manual_seed(0)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.normal_(std=0.02)
    model.save_pretrained(path, max_shard_size="1GB")


def copy(source: Path, target: Path) -> None:
    """Reads and writes the weights, and nothing else."""
    target.mkdir()
    for file in sorted(source.glob("*.safetensors")):
        with file.open("rb") as read, (target / file.name).open("wb") as written:
            shutil.copyfileobj(read, written, BUFFER)
            written.flush()
            os.fsync(written.fileno())


def transformers_copy(source: Path, target: Path) -> None:
    """Loads the whole model and saves it."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(source, dtype="auto").save_pretrained(target)


def measure(action: Callable[[], object]) -> Run:
    """Runs `action` in a forked process."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()

    def run() -> None:
        from megatron_resrl.conversion.report import peak_memory

        before, started = peak_memory(), time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()):
            action()
        results.put(Run(time.perf_counter() - started, peak_memory() - before))

    process = context.Process(target=run)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"a measured process exited {process.exitcode}")
    return results.get()


def ways(model: Path, work: Path) -> dict[str, Callable[[], object]]:
    """What is compared, in the order of one round; each writes below `work`."""
    from megatron_resrl.conversion.from_hugging_face import convert_hf_to_megatron
    from megatron_resrl.conversion.to_hugging_face import convert_megatron_to_hf

    megatron, back = work / "megatron", work / "back"
    return {
        "copy": lambda: copy(model, work / "copy"),
        "to Megatron": lambda: convert_hf_to_megatron(str(model), str(megatron), 2),
        "to Hugging Face": lambda: convert_megatron_to_hf(str(megatron), str(back)),
        "transformers": lambda: transformers_copy(model, work / "transformers"),
    }


def check_equal(first: Path, second: Path) -> None:
    """Raises if the two directories do not hold the same tensors."""
    from safetensors import safe_open

    from megatron_resrl.weights.files import stored_tensors

    stored = stored_tensors(first), stored_tensors(second)
    if stored[0].keys() != stored[1].keys():
        raise RuntimeError(f"{second} has other tensors than {first}")
    for name in stored[0]:
        values = []
        for tensors in stored:
            with safe_open(tensors[name].file, framework="pt") as opened:
                values.append(opened.get_tensor(name))
        if not torch.equal(*values):
            raise RuntimeError(f"{name} came back changed")


def report(model: Path, runs: dict[str, list[Run]]) -> str:
    """The table and the ratios."""
    size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    seconds = {way: statistics.median(run.seconds for run in done) for way, done in runs.items()}
    memory = {way: statistics.median(run.memory for run in done) for way, done in runs.items()}
    lines = [
        f"{size / 1e9:.2f} GB of weights",
        "",
        "| way | seconds | GB/s | memory, GB | of the weights |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {way} | {seconds[way]:.2f} | {size / seconds[way] / 1e9:.2f} "
        f"| {memory[way] / 1e9:.2f} | {memory[way] / size:.0%} |"
        for way in runs
    ]
    ratios = [
        f"{way.replace(' ', '_')}_time_over_{other} = {seconds[way] / seconds[other]:.2f}"
        for way in ("to Megatron", "to Hugging Face")
        for other in ("copy", "transformers")
    ]
    ratios += [
        f"{way.replace(' ', '_')}_memory_over_transformers = "
        f"{memory[way] / memory['transformers']:.2f}"
        for way in ("to Megatron", "to Hugging Face")
    ]
    return "\n".join([*lines, "", ", ".join(ratios)])


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--synthetic", choices=SHAPES)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--work", type=Path, help="folder for the files, default: a temporary one")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if (options.model is None) == (options.synthetic is None):
        parser.error("give either a model's directory or --synthetic")
    header = describe(("torch", "megatron-core", "transformers", "safetensors"), threads=1)
    adapt_megatron_core()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        model = options.model or Path(folder) / "model"
        if options.synthetic:
            write_synthetic(options.synthetic, model)
        runs: dict[str, list[Run]] = {}
        for number in range(options.runs):
            work = Path(folder) / "round"
            work.mkdir()
            for way, action in ways(model, work).items():
                runs.setdefault(way, []).append(measure(action))
            if number == 0:
                check_equal(model, work / "back")
            shutil.rmtree(work)
        name = options.synthetic or model.name
        text = f"# Conversion of {name}\n\n{header}\n\n{report(model, runs)}\n"
    print(text)
    if options.output:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
