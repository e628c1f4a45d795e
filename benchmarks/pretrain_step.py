"""A step of pretraining beside the same step written with transformers, on this machine.

    python benchmarks/pretrain_step.py [--runs 5] [--threads 1] [--sequences 4] [--length 512]
        [--hidden 256] [--layers 6] [--vocabulary 8192] [--output FILE]

The same Llama, in fp32, with the same weights, tokens, threads and Adam, one process each way: ours
takes `supervised_step`; transformers computes its own loss (`labels`), then `backward`,
`clip_grad_norm_` and torch's AdamW. The ways alternate, `--runs` times; medians are reported, and
the losses of each step are compared. Seconds are the process's CPU seconds over its threads, which
other programs on the machine hardly change. MFU is the share of the fastest of several matrix
products of 1024 x 1024 in the same run. The last line has our seconds over transformers': below 1
is better.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy
import torch
from machine import describe
from transformers import AutoModelForCausalLM, LlamaConfig

from megatron_resrl.config.schema import (
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PrecisionConfig,
)
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.platform.distributed import process_groups
from megatron_resrl.policy.policy import Policy
from megatron_resrl.training.pretrain import batch_of
from megatron_resrl.training.supervised import supervised_step
from megatron_resrl.training.throughput import throughput_of

LEARNING_RATE, WEIGHT_DECAY, CLIP = 1e-3, 0.1, 1.0
PRODUCT, PRODUCTS = 1024, 20
"""Size and number of the matrix products that are timed for the peak."""
Step = Callable[[numpy.ndarray], float]
"""Takes an optimizer step on token ids [sequences, length + 1]; returns the loss before it."""


def write_model(folder: Path, options: argparse.Namespace) -> None:
    """A random Llama."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 8 // 3 // 32 * 32,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 32,
        num_key_value_heads=max(1, options.hidden // 64),
        max_position_embeddings=options.length,
        tie_word_embeddings=False,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def ours(folder: Path, micro_batch_size: int) -> tuple[Step, Policy]:
    """The product's step."""
    optimizer = OptimizerConfig(
        lr=LEARNING_RATE, lr_warmup_steps=0, weight_decay=WEIGHT_DECAY, clip_grad=CLIP
    )
    policy = Policy.build(
        ModelConfig(str(folder)), ParallelConfig(), PrecisionConfig("fp32"), optimizer=optimizer
    )

    def step(tokens: numpy.ndarray) -> float:
        batch = batch_of([[row] for row in tokens], micro_batch_size, document_mask=False)
        return supervised_step(policy, batch, 0.0, PhaseTimers()).metrics["loss"]

    return step, policy


def theirs(folder: Path, micro_batch_size: int) -> Step:
    """transformers' model, loss and attention (its default), torch's AdamW."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    groups = [
        {"params": [each for each in model.parameters() if each.dim() > 1]},
        {"params": [each for each in model.parameters() if each.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.999), eps=1e-8
    )

    def step(tokens: numpy.ndarray) -> float:
        optimizer.zero_grad()
        total = 0.0
        micro_batches = torch.from_numpy(tokens).split(micro_batch_size)
        for each in micro_batches:
            # As many targets in each micro-batch, so that the mean of means is the mean.
            targets = each[:, 1:].contiguous()
            output = model(input_ids=each[:, :-1], shift_labels=targets, labels=targets)
            (output.loss / len(micro_batches)).backward()
            total += output.loss.item() / len(micro_batches)
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return total

    return step


def peak_flops() -> float:
    """FLOP/s of the fastest matrix product in fp32."""
    factor = torch.randn(PRODUCT, PRODUCT)
    fastest = float("inf")
    for _ in range(PRODUCTS):
        began = time.process_time()
        factor @ factor
        fastest = min(fastest, (time.process_time() - began) / torch.get_num_threads())
    return 2 * PRODUCT**3 / fastest


def report(
    seconds: dict[str, list[float]], tokens: int, flops_per_token: float, peak: float
) -> str:
    """The table and the ratio."""
    median = {way: statistics.median(each) for way, each in seconds.items()}
    lines = [
        f"peak of a matrix product: {peak / 1e9:.1f} GFLOP/s",
        "",
        "| way | CPU seconds per step | tokens/s | MFU |",
        "|---|---:|---:|---:|",
    ]
    for way, each in median.items():
        share = tokens * flops_per_token / each / peak
        lines.append(f"| {way} | {each:.3f} | {tokens / each:.0f} | {share:.2f} |")
    return "\n".join([*lines, "", f"step_ratio={median['ours'] / median['transformers']:.3f}"])


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ("runs", 5), ("threads", 1), ("sequences", 4), ("micro_batch_size", 2), ("length", 512),
        ("hidden", 256), ("layers", 6), ("vocabulary", 8192),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    header = describe(("torch", "transformers", "megatron-core"), threads=options.threads)
    draw = numpy.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name, process_groups(ParallelConfig(), 0):
        write_model(Path(name), options)
        own, policy = ours(Path(name), options.micro_batch_size)
        ways = {"ours": own, "transformers": theirs(Path(name), options.micro_batch_size)}
        throughput = throughput_of(policy, options.length, None)
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for run in range(options.runs + 1):
            shape = (options.sequences, options.length + 1)
            tokens = draw.integers(0, options.vocabulary, shape)
            losses = []
            for way, step in ways.items():
                began = time.process_time()
                losses.append(step(tokens))
                if run:  # The first one warms up.
                    seconds[way].append((time.process_time() - began) / options.threads)
            if abs(losses[0] - losses[1]) > 1e-4 * losses[1]:
                raise RuntimeError(f"the losses of step {run + 1} differ: {losses}")
        tokens_per_step = options.sequences * options.length
        text = report(seconds, tokens_per_step, throughput.flops_per_token, peak_flops())
    text = f"{header}\n\n{text}"
    print(text)
    if options.output:
        options.output.write_text(f"# A step of pretraining\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
