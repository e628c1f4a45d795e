"""Reading a checkpoint does not run what it asks to be run."""

from __future__ import annotations

import argparse
import io
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_resrl.errors import InputError
from megatron_resrl.platform.repairs import name_pathlib_as_python_3_13
from megatron_resrl.weights.inert_pickle import (
    Inert,
    foreign_names,
    read_pickle,
    read_torch_file,
)


class MakesADirectory:
    """Pickled as a call of `os.mkdir`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_read_torch_file_makes_no_calls_and_reads_tensors(tmp_path: Path) -> None:
    file, made = tmp_path / "file.pt", tmp_path / "made"
    tensor = torch.randn(3, 4).to(torch.bfloat16)
    content = {
        "args": argparse.Namespace(layers=4, kind=MakesADirectory(made)),
        "model": {"a": tensor, "b": torch.nn.Parameter(tensor)},
        "other": [MakesADirectory(made)],
    }
    torch.save(content, file)
    read = read_torch_file(file)
    assert not made.exists()
    assert read["args"].layers == 4
    assert isinstance(read["args"].kind, Inert)
    assert isinstance(read["other"][0], Inert)
    assert torch.equal(read["model"]["a"], tensor)
    assert torch.equal(read["model"]["b"], tensor)


def test_read_pickle_makes_no_calls(tmp_path: Path) -> None:
    file, made = tmp_path / "file", tmp_path / "made"
    file.write_bytes(pickle.dumps([1, MakesADirectory(made)]))
    number, stand_in = read_pickle(file)
    assert number == 1
    assert isinstance(stand_in, Inert)
    assert not made.exists()


def test_read_pickle_knows_paths_of_python_3_13(tmp_path: Path) -> None:
    pickled = b"cpathlib._local\nPosixPath\n(Va\nVb\ntR."
    assert foreign_names(io.BytesIO(pickled)) == []
    (tmp_path / "file").write_bytes(pickled)
    assert read_pickle(tmp_path / "file") == Path("a/b")
    name_pathlib_as_python_3_13()
    assert pickle.loads(pickled) == Path("a/b")


def test_read_torch_file_names_damaged_files(tmp_path: Path) -> None:
    file = tmp_path / "file.pt"
    torch.save({"a": torch.ones(100)}, file)
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(InputError, match=r"file\.pt cannot be read .*copy it again"):
        read_torch_file(file)
