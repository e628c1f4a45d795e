"""Formats of Megatron-LM other than torch_dist are refused by their names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_resrl.checks.recipe import check_recipe
from megatron_resrl.config.schema import ModelConfig, Recipe
from megatron_resrl.errors import InputError
from megatron_resrl.weights.megatron_folders import find_checkpoint


def write(folder: Path, kind: str) -> None:
    """A checkpoint of a kind, as far as its files tell the kind."""
    folder.mkdir(parents=True)
    if kind == "torch":
        (folder / "mp_rank_00").mkdir()
    elif kind == "fsdp_dtensor":
        (folder / ".metadata").write_bytes(b"torch's index")
    else:
        (folder / "metadata.json").write_text(json.dumps({"sharded_backend": kind}))
        (folder / ".metadata").write_bytes(b"an index")


@pytest.mark.parametrize("above", [True, False])
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("torch", r"mp_rank_\* folders, Megatron-LM's older format \(--ckpt-format torch\)"),
        ("fsdp_dtensor", r"torch's index without megatron-core's .*fsdp_dtensor or torch_dcp\)"),
        ("zarr", "a checkpoint in the format 'zarr'"),
    ],
)
def test_find_checkpoint_refuses_formats_by_name(
    tmp_path: Path, kind: str, said: str, above: bool
) -> None:
    write(tmp_path / "iter_0000100", kind)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("100\n")
    path = tmp_path if above else tmp_path / "iter_0000100"
    match = rf"iter_0000100 holds {said}; supported is torch_dist.*--ckpt-convert-format torch_dist"
    with pytest.raises(InputError, match=match):
        find_checkpoint(path)
    found = check_recipe(Recipe(model=ModelConfig(str(path))), world_size=1)
    (problem,) = (each for each in found if each.setting == "model.path")
    assert "iter_0000100 holds" in problem.problem
    assert problem.fix.startswith("supported is torch_dist, which Megatron-LM writes")


def test_find_checkpoint_takes_torch_dist(tmp_path: Path) -> None:
    write(tmp_path / "release", "torch_dist")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("release")
    assert find_checkpoint(tmp_path) == tmp_path / "release"
    (tmp_path / "release" / "metadata.json").write_text("[]")
    with pytest.raises(InputError, match=r"metadata\.json cannot be read"):
        find_checkpoint(tmp_path)
