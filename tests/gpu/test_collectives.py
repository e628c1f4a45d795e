"""Every collective of the product and of megatron-core's data parallelism, with its number formats,
on a group of one rank: NCCL refuses an unknown format whatever the size of the group."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from gpu.measured import Measured
from megatron.core import parallel_state

from megatron_resrl.platform.distributed import (
    any_rank,
    broadcast_object,
    device,
    gather_objects,
    max_over_ranks,
)

pytestmark = pytest.mark.gpu

FORMATS = [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.int32, torch.uint8]


@pytest.fixture(params=FORMATS, ids=lambda dtype: str(dtype).removeprefix("torch."))
def tensor(one_rank: None, request: pytest.FixtureRequest) -> torch.Tensor:
    return torch.arange(24, device=device()).reshape(6, 4).to(request.param)


def test_collectives_move_every_number_format(tensor: torch.Tensor) -> None:
    expected = tensor.clone()
    for operation in (dist.ReduceOp.SUM, dist.ReduceOp.MAX, dist.ReduceOp.MIN):
        dist.all_reduce(tensor, op=operation)
    dist.broadcast(tensor, src=0)
    assert torch.equal(tensor, expected)
    gathered = tensor.new_empty((1, *tensor.shape))
    dist.all_gather(list(gathered.unbind(0)), tensor)
    into = torch.empty_like(tensor)
    dist.all_gather_into_tensor(into, tensor)
    scattered = torch.empty_like(tensor)
    dist.reduce_scatter_tensor(scattered, tensor)
    exchanged = torch.empty_like(tensor)
    dist.all_to_all_single(exchanged, tensor, [6], [6])
    for found in (gathered[0], into, scattered, exchanged):
        assert torch.equal(found, expected)


def test_coalesced_collectives_of_gradient_buckets(one_rank: None) -> None:
    buckets = [torch.randn(n, device=device()) for n in (64, 128)]
    outputs = [torch.empty_like(bucket) for bucket in buckets]
    group = parallel_state.get_data_parallel_group()
    with dist._coalescing_manager(group, async_ops=True) as handle:
        for output, bucket in zip(outputs, buckets, strict=True):
            dist.reduce_scatter_tensor(output, bucket, group=group, async_op=True)
    handle.wait()
    for output, bucket in zip(outputs, buckets, strict=True):
        assert torch.equal(output, bucket)


def test_objects_and_flags_travel(one_rank: None, measured: Measured) -> None:
    value = {"tokens": (1, 2), "on": device()}
    assert broadcast_object(value) == value
    assert gather_objects(value) == [value]
    assert gather_objects(value, parallel_state.get_data_parallel_group()) == [value]
    assert any_rank(True)
    assert max_over_ranks(7) == 7
    dist.barrier()
    measured.note("process_groups", len(dist.distributed_c10d._world.pg_map))
