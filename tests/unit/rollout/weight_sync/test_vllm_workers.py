"""What the GPU back ends send is what vLLM's workers take: held against vLLM's own code."""

from __future__ import annotations

import base64
import itertools
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from served_engine import vllm_python

from megatron_resrl.rollout.weight_sync.buckets import in_buckets
from megatron_resrl.rollout.weight_sync.device_source import nccl_introduction
from megatron_resrl.rollout.weight_sync.device_transfer import broadcast_announcement, fill
from megatron_resrl.rollout.weight_sync.packed import broadcast_buckets, description, packed
from megatron_resrl.weights.export import TensorFacts

SCRIPT = Path(__file__).with_name("vllm_workers.py")
BUCKET = 64
UNIQUE_ID = bytes(range(128))
GPU = "GPU-1f"


def weights() -> list[tuple[str, torch.Tensor]]:
    """Views, several types, and sizes that fill, miss and exceed a bucket by one element."""
    torch.manual_seed(0)
    base = torch.randn(8, 8)
    return [
        ("exactly.full", base[0]),
        ("one.more", torch.randn(8).to(torch.bfloat16)),
        ("transposed", base.T),
        ("column", base[:, 3]),
        ("large", torch.randn(40).to(torch.bfloat16)),
        ("counts", torch.arange(3)),
        ("bytes", torch.arange(16, dtype=torch.uint8)),
        ("last", torch.randn(1)),
    ]


def sent() -> dict[str, Any]:
    facts = [TensorFacts(name, each.dtype, tuple(each.shape)) for name, each in weights()]
    size = max(fact.num_bytes for fact in facts)
    handles = {"GPU-other": (0,) * 8, GPU: (0,) * 8}
    pickled = {"ipc_handles_pickled": base64.b64encode(pickle.dumps(handles)).decode()}
    buckets = list(in_buckets(weights(), size))
    buffers = [torch.full((size,), 7, dtype=torch.uint8) for _ in buckets]
    for buffer, bucket in zip(buffers, buckets, strict=True):
        fill(buffer, bucket)
    return {
        "nccl": {
            "init_infos": nccl_introduction(UNIQUE_ID, {"a": 2, "b": 1, "c": 4}, BUCKET),
            "update_info": broadcast_announcement(facts),
            "contents": [packed(bucket) for bucket in broadcast_buckets(weights(), BUCKET)],
        },
        "ipc": {
            "init_info": {"packed": True},
            "gpu": GPU,
            "update_infos": [description(bucket) | pickled for bucket in buckets],
            "buffers": buffers,
        },
    }


def vllm_folder() -> str:
    """`vllm/distributed/weight_transfer` of the interpreter that has vLLM, or another version's."""
    given = os.environ.get("MEGATRON_RESRL_VLLM_WORKERS")
    if given:
        return given
    code = "import importlib.util as u; print(u.find_spec('vllm').submodule_search_locations[0])"
    found = subprocess.run(
        [vllm_python()[0], "-c", code], capture_output=True, text=True, check=True
    )
    return f"{found.stdout.strip()}/distributed/weight_transfer"


@pytest.fixture(scope="module")
def understood(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sent")
    torch.save(sent(), folder / "sent")
    command = [sys.executable, str(SCRIPT), vllm_folder()]
    command += [str(folder / "sent"), str(folder / "understood")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(folder / "understood", weights_only=False)


@pytest.mark.vllm
@pytest.mark.parametrize("backend", ["nccl", "ipc"])
def test_vllm_workers_unpack_every_tensor(understood, backend):
    got = understood[backend]["weights"]
    assert [name for name, _ in got] == [name for name, _ in weights()]
    for (_, theirs), (_, ours) in zip(got, weights(), strict=True):
        assert theirs.dtype == ours.dtype
        assert torch.equal(theirs, ours)


@pytest.mark.vllm
def test_vllm_workers_join_behind_the_trainer(understood):
    assert understood["nccl"]["ids"] == [UNIQUE_ID] * 3
    assert understood["nccl"]["places"] == [(1, 8), (3, 8), (4, 8)]


def test_packed_bucket_ends_above_its_size():
    names = [[name for name, _ in bucket] for bucket in broadcast_buckets(weights(), BUCKET)]
    assert names[0] == ["exactly.full", "one.more", "transposed"]
    assert list(itertools.chain.from_iterable(names)) == [name for name, _ in weights()]
