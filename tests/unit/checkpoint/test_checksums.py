"""Damage that sizes do not show is found, by whichever rank reads the file."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as torch_checkpoint

from megatron_resrl.checkpoint.checksums import (
    SUMS_FILE,
    ChecksumWriter,
    damaged_files,
    read_sums,
    write_sums,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Shards, an index and a sub-folder, listed."""
    writer = ChecksumWriter(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch_checkpoint.save(
            {"weight": torch.arange(1e5), "note": "text"}, storage_writer=writer, no_dist=True
        )
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    assert set(writer.digests) == {"__0_0.distcp", ".metadata"}
    write_sums(tmp_path, writer.digests)
    return tmp_path


def test_checksums_made_while_writing_are_those_of_the_files(folder):
    sums = read_sums(folder)
    assert set(sums) == {"__0_0.distcp", ".metadata", "hf/config.json"}
    for name, digest in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert damaged_files(folder) == []


def test_checksums_leave_files_that_torch_reads(folder):
    state = {"weight": torch.zeros(100_000), "note": ""}
    torch_checkpoint.load(state, checkpoint_id=folder, no_dist=True)
    assert torch.equal(state["weight"], torch.arange(1e5))
    assert state["note"] == "text"


def test_index_names_no_class_of_paths(folder):
    # Python 3.13 pickles paths under a name that earlier versions lack.
    assert b"pathlib" not in (folder / ".metadata").read_bytes()


def test_checksums_find_one_flipped_bit_on_one_of_three_ranks(folder):
    shard = folder / "__0_0.distcp"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0b100
    shard.write_bytes(content)
    found = [damaged_files(folder, rank, 3) for rank in range(3)]
    assert sorted(found) == [[], [], ["__0_0.distcp differs from its checksum"]]


def test_checksums_name_a_missing_file(folder):
    (folder / "hf" / "config.json").unlink()
    assert damaged_files(folder) == ["hf/config.json is missing"]


def test_checksums_refuse_a_malformed_list(folder):
    (folder / SUMS_FILE).write_text("nonsense\n")
    with pytest.raises(ValueError, match="not a digest and a name"):
        damaged_files(folder)
