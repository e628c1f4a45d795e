"""How fast the parts of a step are, on Qwen3-1.7B's shape in bf16: written down, with no limits."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from gpu.measured import Measured
from gpu.shapes import QWEN3_1_7B, TINY, Shape, write_model
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from megatron_resrl.config.load import load_recipe
from megatron_resrl.platform.distributed import device, initialize
from megatron_resrl.policy.batches import MicroBatch, TokenBatch
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.engine import GenerationRequest, SamplingParams
from megatron_resrl.rollout.engines.megatron import MegatronEngine
from megatron_resrl.rollout.worker import build_policy
from megatron_resrl.subspace import token_weights

pytestmark = pytest.mark.gpu

PEAK_FLOPS = 989e12
"""bf16 products of an H100 SXM or H200, per second."""
REPEATS = 3
PROFILED_KERNELS = 10


@dataclass(frozen=True)
class Model:
    """A model on disk."""

    shape: Shape
    folder: Path
    parameters: int

    def forward_flops(self) -> float:
        """Of the batch: two per parameter and token, and causal attention."""
        config, shape = self.shape.config, self.shape
        width = config["num_attention_heads"] * config["head_dim"]
        length = shape.prompt + shape.response
        attention = 2 * length * width * config["num_hidden_layers"]
        return shape.tokens * (2.0 * self.parameters + attention)


@pytest.fixture(scope="module")
def model(one_rank: None, cuda: bool) -> Iterator[Model]:
    shape, memory = (QWEN3_1_7B if cuda else TINY), Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        sizes = write_model(Path(name), shape, device())
        yield Model(shape, Path(name), sum(size.numel() for size in sizes.values()))


@pytest.fixture
def prepared(model: Model, cuda: bool) -> Iterator[Callable]:
    """prepared("--precision.fp8=hybrid", ...) -> a trainable policy and its micro-batches."""

    def built(*settings: str) -> tuple[Policy, list[MicroBatch]]:
        given = (f"--model.path={model.folder}", "--precision.params_dtype=bf16", *settings)
        recipe = load_recipe(None, given)
        initialize(recipe.parallel, 0)
        policy = build_policy(recipe)
        batch = TokenBatch.from_sequences(model.shape.draw())
        return policy, policy.micro_batches(batch, 1)

    yield built
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()


def seconds(work: Callable[[], object], cuda: bool) -> float:
    """Median of repeated runs after one that warms up."""
    times = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def take_step(policy: Policy, batches: list[MicroBatch]) -> None:
    policy.update(batches, lambda log_probs, entropy, batch: (-log_probs.mean(), None))


def note_update(
    measured: Measured, model: Model, policy: Policy, batches: list[MicroBatch], cuda: bool
) -> None:
    """Time, tokens per second, share of the peak, and memory of an update."""
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    took = seconds(lambda: take_step(policy, batches), cuda)
    measured.note("update_s", took)
    measured.note("update_tokens_per_s", model.shape.tokens / took)
    measured.note("update_mfu", 3 * model.forward_flops() / took / PEAK_FLOPS, ">= 0.35 expected")
    if cuda:
        measured.note("update_peak_gib", torch.cuda.max_memory_allocated() / 2**30)


def test_parts_of_a_step(
    prepared: Callable, model: Model, measured: Measured, cuda: bool, request: pytest.FixtureRequest
) -> None:
    policy, batches = prepared()
    took = seconds(lambda: policy.score(batches), cuda)
    measured.note("score_s", took)
    measured.note("score_tokens_per_s", model.shape.tokens / took)
    measured.note("score_mfu", model.forward_flops() / took / PEAK_FLOPS, ">= 0.35 expected")
    note_update(measured, model, policy, batches, cuda)
    shape = model.shape
    decoder = MegatronEngine(policy, max_running_samples=shape.decoded_rows)
    prompt = shape.draw()[0].prompt
    sampling = SamplingParams(shape.decoded_tokens, (), n=shape.decoded_rows)
    took = seconds(lambda: decoder.generate(GenerationRequest([prompt], sampling, (0,))), cuda)
    measured.note("decode_tokens_per_s", shape.decoded_rows * shape.decoded_tokens / took)
    hidden = torch.randn(
        (shape.sequences, shape.response, shape.config["hidden_size"]),
        dtype=torch.bfloat16,
        device=device(),
    )
    rows = torch.arange(shape.sequences)
    mask = torch.ones(hidden.shape[:2], dtype=torch.bool)
    took = seconds(lambda: token_weights(hidden, mask, rows % 2 == 0, 0 * rows), cuda)
    measured.note("subspace_s", took)
    _profile(policy, batches, measured, cuda, request.config.getoption("--results", default=None))


@pytest.mark.parametrize(
    "settings",
    [
        ("--model.megatron.apply_rope_fusion=false",),
        ("--precision.fp8=hybrid", "--precision.fp8_recipe=tensorwise"),
        ("--precision.fp8=hybrid", "--precision.fp8_recipe=blockwise"),
    ],
    ids=["rope_without_fusion", "fp8_tensorwise", "fp8_blockwise"],
)
def test_updates_with(
    prepared: Callable, model: Model, measured: Measured, cuda: bool, settings: tuple[str, ...]
) -> None:
    if not cuda and "tensorwise" not in settings[-1]:
        pytest.skip("a kernel that is not answered on a CPU")
    policy, batches = prepared(*settings)
    note_update(measured, model, policy, batches, cuda)


def _profile(
    policy: Policy,
    batches: list[MicroBatch],
    measured: Measured,
    cuda: bool,
    results: Path | None,
) -> None:
    """The longest kernels of an update beside the results, and how long the device was idle."""
    activity = ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU
    with profile(activities=[activity]) as found:
        take_step(policy, batches)
        if cuda:
            torch.cuda.synchronize()
    kernels = [
        (event.time_range.start, event.time_range.end)
        for event in found.events()
        if event.device_type == (DeviceType.CUDA if cuda else DeviceType.CPU)
    ]
    measured.note("kernels_per_update", len(kernels))
    measured.note("idle_share", idle_share(kernels), "< 0.1 expected")
    if results is not None:
        order = "self_device_time_total" if cuda else "self_cpu_time_total"
        table = found.key_averages().table(sort_by=order, row_limit=PROFILED_KERNELS)
        results.with_name("profile.txt").write_text(table)


def idle_share(intervals: Sequence[tuple[float, float]]) -> float:
    """Share of the time from the first beginning to the last end that no interval covers."""
    begun = reached = min(start for start, _ in intervals)
    idle = 0.0
    for start, end in sorted(intervals):
        idle += max(0.0, start - reached)
        reached = max(reached, end)
    return idle / (reached - begun)


def test_idle_share_counts_what_no_kernel_covers() -> None:
    assert idle_share([(4.0, 6.0), (0.0, 2.0), (1.0, 3.0), (9.0, 10.0)]) == pytest.approx(0.4)
