"""What the inspection tool says of whole, damaged and foreign folders."""

from __future__ import annotations

import importlib.util
import json
import os
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as torch_checkpoint
from common_object import store_common_as_object
from ranks import REPOSITORY

from megatron_resrl.checkpoint.checksums import ChecksumWriter
from megatron_resrl.checkpoint.folders import begin, publish
from megatron_resrl.checkpoint.retention import Retention

STATE = {
    "decoder.layers.mlp.weight": torch.ones(3, 4, 5, dtype=torch.bfloat16),
    "output_layer.weight": torch.ones(7, 5, dtype=torch.bfloat16),
    "optimizer.state.param.output_layer.weight": torch.ones(7, 5),
    "optimizer.state.exp_avg.output_layer.weight": torch.ones(7, 5),
    "random": "a state",
}
TRAINER = {
    "layout": {"tensor_model_parallel_size": 2, "world_size": 4, "context_parallel_size": None},
    "model": {"model_type": "llama"},
    "code": {"torch": "2.13.0", "git_commit": None},
}


@pytest.fixture(scope="module")
def tool():
    """The script as a module."""
    file = REPOSITORY / "tools" / "inspect_checkpoint.py"
    spec = importlib.util.spec_from_file_location("inspect_checkpoint", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two checkpoints."""
    for step in (1, 2):
        folder = begin(tmp_path, step)
        writer = ChecksumWriter(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            torch_checkpoint.save(STATE, storage_writer=writer, no_dist=True)
        (folder / "metadata.json").write_text("{}")
        (folder / "common.pt").write_bytes(b"common")
        publish(folder, TRAINER | {"step": step}, writer.digests, Retention(2))
    return tmp_path


def test_inspect_shows_all_checkpoints_of_a_run(tool, run, capsys):
    assert tool.inspect(run, verify=True) == 0
    said = capsys.readouterr().out
    for step in (1, 2):
        assert f"step_00000{step}\n  step      {step}\n" in said
    assert "layout    tensor_model_parallel_size 2, world_size 4\n" in said
    assert said.count("every file equals its checksum") == 2
    lines = {line.split("  ")[1]: line for line in said.splitlines() if " tensors " in line}
    assert "2 tensors" in lines["weights"]
    assert " 95 elements" in lines["weights"]
    assert "bfloat16" in lines["weights"]
    assert " 35 elements" in lines["fp32 masters"]
    assert " 35 elements" in lines["moments (exp_avg)"]


def test_inspect_prints_one_checkpoint_as_json(tool, run, capsys):
    assert tool.inspect(run / "checkpoints" / "step_000002", json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["trainer"]["step"] == 2
    assert found["parts"]["weights"]["bytes"] == 2 * 95
    assert found["tensors"]["decoder.layers.mlp.weight"] == [[3, 4, 5], "bfloat16"]
    assert found["objects"] == 1
    assert found["problems"] == []
    assert not found["verified"]


def test_inspect_names_damage_in_text_and_exit_status(tool, run, capsys):
    shard = run / "checkpoints" / "step_000002" / "__0_0.distcp"
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1
    shard.write_bytes(content)
    assert tool.inspect(run) == 0
    assert tool.inspect(run, verify=True) == 1
    assert "PROBLEM   __0_0.distcp differs from its checksum" in capsys.readouterr().out
    os.truncate(shard, 1000)
    assert tool.inspect(run) == 1
    assert "__0_0.distcp has 1000 of " in capsys.readouterr().out


def test_inspect_needs_no_trainer_state_for_weights(tool, run, capsys):
    released = run / "release"
    (run / "checkpoints" / "step_000002").rename(released)
    (released / "trainer.json").unlink()
    (released / "SHA256SUMS").unlink()
    assert tool.inspect(released) == 0
    assert "complete  (contents not read)" in capsys.readouterr().out
    assert tool.inspect(released, verify=True) == 1


def test_inspect_finds_common_values_in_file_or_index(tool, run, capsys):
    released = run / "release"
    (run / "checkpoints" / "step_000002").rename(released)
    (released / "trainer.json").unlink()
    torch.save({}, released / "common.pt")
    store_common_as_object(released)
    assert tool.inspect(released) == 0
    assert "objects                    2\n" in capsys.readouterr().out
    run_folder = run / "checkpoints" / "step_000001"
    (run_folder / "trainer.json").unlink()
    (run_folder / "common.pt").unlink()
    assert tool.inspect(run_folder) == 1
    assert "lacks common.pt" in capsys.readouterr().out


def test_inspect_refuses_folders_without_checkpoints(tool, tmp_path, capsys):
    assert tool.inspect(tmp_path) == 2
    assert "neither a checkpoint" in capsys.readouterr().err
