"""Buckets that another node writes once more, in step with rank 0."""

from __future__ import annotations

import contextlib

import pytest
import torch
from kept_files import KeptFiles
from served_engine import one_rank

from megatron_resrl.errors import InputError
from megatron_resrl.rollout.weight_sync.control import ServerControl
from megatron_resrl.rollout.weight_sync.file_copies import FileCopies, separate_nodes
from megatron_resrl.rollout.weight_sync.file_transfer import FileTransfer


@pytest.fixture(autouse=True)
def group():
    with one_rank():
        yield


def buckets():
    for number in range(4):
        yield [("weight", torch.full((3,), float(number)))]


def test_file_copies_write_each_bucket_and_delete_old_ones(tmp_path):
    files = FileTransfer(str(tmp_path), 10**6, timeout_s=1)
    beside, elsewhere = ServerControl("http://a:1", rank_beside=0), ServerControl("http://b:1")
    elsewhere.rank_beside = 7
    with FileCopies(files, writers=(0,)) as copies:
        for number, _ in enumerate(copies.in_step(buckets())):
            written = copies.path(beside, tmp_path / f"{number:05d}.safetensors")
            assert written.parent != tmp_path
            assert KeptFiles().load(written)["weight"].tolist() == [number] * 3
            assert len(list(written.parent.iterdir())) <= 2
            assert copies.path(elsewhere, tmp_path / "x") == tmp_path / "x"
        assert copies.problem is None
    assert not list(tmp_path.iterdir())


def test_file_copies_go_on_after_a_failed_write():
    class Full:
        def folder(self):
            return contextlib.nullcontext("/nowhere")

        def write(self, folder, number, bucket):
            raise InputError("vllm.transfer_dir is full")

    with FileCopies(Full(), writers=(0,)) as copies:
        assert len(list(copies.in_step(buckets()))) == 4
        assert str(copies.problem) == "vllm.transfer_dir is full"


def test_separate_nodes_are_none_on_one_node(tmp_path):
    assert separate_nodes(tmp_path) == ()
