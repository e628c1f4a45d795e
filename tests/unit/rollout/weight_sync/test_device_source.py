"""What the GPU back ends are given: places in a group, handles, addresses."""

from __future__ import annotations

import base64
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_resrl.rollout.weight_sync.device_source import (
    address_towards,
    free_port,
    rank_offsets,
    without_handles,
)


@given(st.lists(st.integers(1, 8), min_size=1, max_size=6))
def test_servers_fill_the_group_behind_the_trainer_without_overlap(world_sizes):
    offsets, size = rank_offsets(world_sizes)
    ranks = [
        rank
        for offset, count in zip(offsets, world_sizes, strict=True)
        for rank in range(offset, offset + count)
    ]
    assert [0, *ranks] == list(range(size))


def test_handles_travel_in_the_form_that_vllm_takes_over_http():
    info = {"names": ["a"], "ipc_handles": {"gpu": (1, b"x")}}
    sent = without_handles(info)
    assert sent.keys() == {"names", "ipc_handles_pickled"}
    assert pickle.loads(base64.b64decode(sent["ipc_handles_pickled"])) == info["ipc_handles"]
    assert "ipc_handles" in info
    assert without_handles({"names": ["a"]}) == {"names": ["a"]}


def test_servers_on_this_host_are_reached_by_the_loopback_address():
    assert address_towards(["http://127.0.0.1:8000"]).startswith("127.")
    assert free_port() > 0


@pytest.mark.parametrize("urls", [["http://127.0.0.1:1", "http://localhost:2"]])
def test_several_servers_share_one_address(urls):
    assert isinstance(address_towards(urls), str)
