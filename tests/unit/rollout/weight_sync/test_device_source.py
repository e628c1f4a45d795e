"""What workers are told of an NCCL group: a place for each of them."""

from __future__ import annotations

import base64

from hypothesis import given
from hypothesis import strategies as st

from megatron_resrl.rollout.weight_sync.device_source import nccl_introduction


@given(st.lists(st.integers(1, 8), min_size=1, max_size=6))
def test_nccl_introduction_gives_every_server_its_own_ranks(world_sizes):
    sizes = {f"http://{number}": size for number, size in enumerate(world_sizes)}
    infos = nccl_introduction(bytes(128), sizes, 1000)
    ranks = [
        rank
        for url, size in sizes.items()
        for rank in range(infos[url]["rank_offset"], infos[url]["rank_offset"] + size)
    ]
    assert [0, *ranks] == list(range(infos["http://0"]["world_size"]))
    assert len({info["world_size"] for info in infos.values()}) == 1
    assert base64.b64decode(infos["http://0"]["nccl_unique_id_b64"]) == bytes(128)
