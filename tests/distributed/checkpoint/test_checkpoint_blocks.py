"""The optimizer's state is stored from where it is, and reads like one that was gathered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_checkpoint as tiny
from ranks import run_ranks

SCRIPT = Path(__file__).with_name("ranks_checkpoint_blocks.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What every rank found."""
    work = tmp_path_factory.mktemp("blocks")
    models = tiny.write_models(work / "models")
    out = run_ranks(SCRIPT, 2, models, work)
    line = next(line for line in out.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


def test_save_writes_the_shards_of_each_rank_into_its_file(found):
    for rank in found:
        assert rank["elements"] == 3 * rank["shard"] > 0


def test_blocks_are_the_tensors_that_megatron_core_gathers(found):
    assert [rank["differing"] for rank in found] == [[], []]


@pytest.mark.parametrize("layout", ["same layout", "TP2"])
def test_load_reads_a_checkpoint_of_gathered_state(found, layout):
    for rank in found:
        assert rank[layout]["differing"] == []
        assert rank[layout]["norm"] == pytest.approx(rank["norm"], rel=1e-5)
