"""The two ways of weights from GPU to GPU, as far as one GPU goes: a handle of CUDA memory that
another process reads, and NCCL's own functions in a group of one."""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpu.measured import Measured
from nccl_double import nccl_double

from megatron_resrl.rollout.weight_sync import nccl
from megatron_resrl.rollout.weight_sync.buckets import in_buckets
from megatron_resrl.rollout.weight_sync.device_transfer import fill
from megatron_resrl.rollout.weight_sync.gpu import Gpu
from megatron_resrl.rollout.weight_sync.packed import as_bytes, packed

pytestmark = pytest.mark.gpu


@pytest.fixture
def weights(cuda: bool) -> list[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((257, 64), (64,), (3, 5, 7))
    tensors = [torch.randn(size, generator=generator).bfloat16() for size in sizes]
    return [(str(n), tensor.to("cuda" if cuda else "cpu")) for n, tensor in enumerate(tensors)]


def content(weights: list[tuple[str, torch.Tensor]]) -> bytes:
    return b"".join(as_bytes(tensor).cpu().numpy().tobytes() for _, tensor in weights)


def test_ipc_handle_is_read_by_another_process(weights, cuda: bool, tmp_path: Path) -> None:
    if not cuda:
        pytest.skip("memory of CUDA that another process reads")
    gpu = Gpu()
    assert gpu.uuid
    buffer = torch.empty(len(content(weights)), dtype=torch.uint8, device=gpu.device)
    (bucket,) = in_buckets(weights, buffer.nbytes)
    fill(buffer, bucket)
    gpu.synchronize()
    handle = tmp_path / "handle"
    handle.write_bytes(pickle.dumps(gpu.share(buffer)))
    command = [sys.executable, str(Path(__file__).with_name("ipc_reader.py")), str(handle)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == hashlib.sha256(content(weights)).hexdigest()
    del buffer
    gpu.collect()


def test_nccl_functions_join_and_broadcast(
    weights, cuda: bool, measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    double = contextlib.nullcontext() if cuda else nccl_double(tmp_path, monkeypatch)
    with double:
        measured.note("version", nccl.version())
        group = nccl.Communicator(nccl.new_unique_id(), 1)
        device, stream = torch.device("cpu"), 0
        if cuda:
            gpu = Gpu()
            device, stream = gpu.device, gpu.stream
        one = torch.ones(1, device=device)
        group.warm_up(one, stream)
        buffer = packed(weights)
        group.broadcast(buffer, stream)
        if cuda:
            arrived = gpu.mark()
            gpu.synchronize()
            assert arrived()
        group.abort()
    assert one.item() == 1.0
    assert buffer.cpu().numpy().tobytes() == content(weights)
