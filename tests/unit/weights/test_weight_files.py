"""A model directory is checked as a whole before weights are read, and written completely."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_families as tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from megatron_resrl.weights.files import INDEX, ShardWriter, stored_shapes
from megatron_resrl.weights.hugging_face import check_weights, load_weights


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory with a tiny Qwen3 in one safetensors file."""
    return tiny.write_families(tmp_path, ["qwen3"])["qwen3"]


def check(path: Path) -> None:
    check_weights(AutoConfig.from_pretrained(path), str(path))


def change(path: Path, **tensors: torch.Tensor | None) -> None:
    """Replaces tensors of the file; None removes one."""
    file = path / "model.safetensors"
    changed = load_file(file) | {name.replace("__", "."): t for name, t in tensors.items()}
    save_file({name: t for name, t in changed.items() if t is not None}, file)


def test_complete_directories_of_every_family_pass(tmp_path: Path) -> None:
    for path in tiny.write_families(tmp_path).values():
        check(path)


def test_missing_tensors_are_named_with_the_directory(model: Path) -> None:
    change(model, model__norm__weight=None, model__layers__2__mlp__up_proj__weight=None)
    with pytest.raises(
        ValueError, match=r"model\.norm\.weight is missing; .*up_proj\.weight is missing"
    ) as e:
        check(model)
    assert str(model) in str(e.value)
    assert "model.layers.2.mlp.up_proj.weight" in str(e.value)


def test_tensor_of_another_shape_is_named_with_both_shapes(model: Path) -> None:
    change(model, lm_head__weight=torch.zeros(130, 48))
    with pytest.raises(ValueError, match=r"lm_head\.weight is \(130, 48\) instead of \(131, 48\)"):
        check(model)


def test_experts_of_mixtral_are_found_under_their_file_names(tmp_path: Path) -> None:
    path = tiny.write_families(tmp_path, ["mixtral"])["mixtral"]
    down = "model__layers__1__block_sparse_moe__experts__2__w2__weight"
    up = "model__layers__3__block_sparse_moe__experts__0__w3__weight"
    router = "model__layers__0__block_sparse_moe__gate__weight"
    change(path, **{router: None, down: None, up: torch.zeros(79, 48)})
    with pytest.raises(ValueError, match="do not fit its config") as error:
        check(path)
    assert "layers.0.block_sparse_moe.gate.weight is missing" in str(error.value)
    assert "layers.1.block_sparse_moe.experts.2.w2.weight is missing" in str(error.value)
    assert "experts.0.w3.weight is (79, 48) instead of (80, 48)" in str(error.value)


def test_each_expert_of_a_mixture_is_looked_for(tmp_path: Path) -> None:
    path = tiny.write_families(tmp_path, ["qwen3_moe"])["qwen3_moe"]
    down = "model__layers__1__mlp__experts__2__down_proj__weight"
    gate = "model__layers__3__mlp__experts__0__gate_proj__weight"
    change(path, **{down: None, gate: torch.zeros(31, 48)})
    with pytest.raises(ValueError, match="do not fit its config") as error:
        check(path)
    assert "layers.1.mlp.experts.2.down_proj.weight is missing" in str(error.value)
    assert "experts.0.gate_proj.weight is (31, 48) instead of (32, 48)" in str(error.value)


def test_load_weights_checks_before_it_touches_a_model(model: Path) -> None:
    change(model, model__norm__weight=None)
    with pytest.raises(ValueError, match=r"model\.norm\.weight is missing"):
        load_weights([], AutoConfig.from_pretrained(model), str(model))


def test_weight_files_name_a_directory_without_safetensors(model: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no \*\.safetensors file"):
        check(model)


def test_weight_files_name_a_file_cut_short(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read .*fetch the model"):
        check(model)


def test_weight_files_name_a_missing_file_of_the_index(model: Path) -> None:
    weight_map = dict.fromkeys(stored_shapes(model), "model-00001-of-00002.safetensors")
    (model / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match=r"lacks model-00001-of-00002\.safetensors; fetch"):
        check(model)


def test_malformed_index_is_named(model: Path) -> None:
    (model / INDEX).write_text("{")
    with pytest.raises(ValueError, match=r"index\.json cannot be read .*fetch the model"):
        check(model)


def test_tensor_counts_only_where_the_index_says_it_is(model: Path) -> None:
    weight_map = dict.fromkeys(stored_shapes(model), "model.safetensors")
    weight_map["model.norm.weight"] = "other.safetensors"
    (model / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    save_file({"something": torch.zeros(1)}, model / "other.safetensors")
    with pytest.raises(ValueError, match=r"model\.norm\.weight is missing"):
        check(model)


def write(directory: Path, tensors: dict[str, torch.Tensor], shard_bytes: int) -> None:
    writer = ShardWriter(directory, shard_bytes)
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    writer.close()


def test_weight_files_shards_have_every_tensor_once(tmp_path: Path) -> None:
    tensors = {f"t{number}": torch.randn(number, 4) for number in range(1, 8)}
    write(tmp_path, tensors, shard_bytes=150)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    weight_map = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    read = {}
    for file in files:
        held = load_file(file)
        assert len(held) == 1 or sum(tensor.nbytes for tensor in held.values()) <= 150
        assert all(weight_map[name] == file.name for name in held)
        read |= held
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_weight_files_written_again_leave_no_older_file(tmp_path: Path) -> None:
    tensors = {f"t{number}": torch.randn(10) for number in range(4)}
    write(tmp_path, tensors, shard_bytes=40)
    write(tmp_path, {"t": torch.ones(2)}, shard_bytes=1000)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert stored_shapes(tmp_path) == {"t": (2,)}
