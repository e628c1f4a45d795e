"""Calls of NCCL's C functions, against a library with the declarations of nccl.h."""

from __future__ import annotations

import pytest
import torch
from nccl_double import nccl_double

from megatron_resrl.rollout.weight_sync import nccl


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Lines that the library has written."""
    with nccl_double(tmp_path, monkeypatch) as calls:
        yield calls


def test_nccl_group_makes_the_calls_that_nccl_declares(calls):
    unique_id = nccl.new_unique_id()
    assert unique_id == bytes((200 + i) % 256 for i in range(128))
    group = nccl.Communicator(unique_id, 5)
    stream = 2**40 + 8  # Handles are 64 bits wide.
    group.warm_up(torch.zeros(1), stream)
    group.broadcast(torch.tensor([1, 2, 250], dtype=torch.uint8), stream)
    group.abort()
    group.abort()
    assert calls() == [
        "init 5 0",
        f"all_reduce 1 7 0 5 {stream} 1",
        f"broadcast 3 1 0 5 {stream} 0102fa",
        "abort 5",
    ]


def test_nccl_error_has_the_words_of_nccl_and_a_usual_cause(calls):
    with pytest.raises(nccl.NcclFailure) as failure:
        nccl.Communicator(nccl.new_unique_id(), 13)
    assert "ncclCommInitRank of NCCL 2.27.5 failed: invalid usage" in str(failure.value)
    assert "same version of NCCL" in str(failure.value)


def test_nccl_names_a_missing_library(monkeypatch):
    monkeypatch.setenv(nccl.LIBRARY_VARIABLE, "/nowhere/libnccl.so.2")
    nccl.library.cache_clear()
    with pytest.raises(nccl.NcclFailure, match="cannot be loaded") as failure:
        nccl.new_unique_id()
    assert "'/nowhere/libnccl.so.2'" in str(failure.value)
    nccl.library.cache_clear()
