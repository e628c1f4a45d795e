"""What cannot be converted is refused by name, and leaves nothing behind."""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_conversion
import tiny_families as tiny
import torch
from common_object import store_common_as_object
from safetensors.torch import load_file, save_file

from megatron_resrl.conversion import from_hugging_face
from megatron_resrl.conversion.from_hugging_face import convert_hf_to_megatron
from megatron_resrl.conversion.to_hugging_face import convert_megatron_to_hf
from megatron_resrl.errors import InputError
from megatron_resrl.platform.disk import DiskFull
from megatron_resrl.platform.new_directory import atomic_directory
from megatron_resrl.weights.files import INDEX


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3 in several files, and its Megatron checkpoint."""
    folder = tmp_path_factory.mktemp("pristine")
    families = tiny.write_families(folder / "families")
    model = tiny_conversion.save_typed(families["qwen3"], folder / "model", torch.bfloat16)
    convert_hf_to_megatron(str(model), str(folder / "megatron"), 2, 1)
    return folder


@pytest.fixture
def model(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine / "model", tmp_path / "model"))


@pytest.fixture
def megatron(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine / "megatron", tmp_path / "megatron"))


def refused(source: Path, match: str, **options: Any) -> None:
    """Converts in the direction that fits the source."""
    target = source.parent / "output"
    to_hf = source.name == "megatron"
    convert: Callable[..., Any] = convert_megatron_to_hf if to_hf else convert_hf_to_megatron
    with pytest.raises(InputError, match=match):
        convert(str(source), str(target), **options)
    assert [path.name for path in source.parent.iterdir()] == [source.name]


def set_config(directory: Path, **fields: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def file_of(model: Path, name: str) -> Path:
    return model / json.loads((model / INDEX).read_text())["weight_map"][name]


def change(model: Path, name: str, new: Callable[[torch.Tensor], torch.Tensor] | None) -> None:
    """Replaces a tensor, or removes it."""
    file = file_of(model, name)
    content = load_file(file)
    old = content.pop(name)
    save_file(content | ({name: new(old)} if new else {}), file)


def test_conversion_refuses_an_unknown_architecture(model: Path) -> None:
    set_config(model, architectures=["FalconForCausalLM"])
    refused(model, r"config\.json names FalconForCausalLM; supported are LlamaForCausalLM")


def test_conversion_refuses_quantized_weights(model: Path) -> None:
    set_config(model, quantization_config={"quant_method": "gptq"})
    refused(model, "quantization_config; only unquantized")


def test_conversion_refuses_a_model_without_config(model: Path) -> None:
    (model / "config.json").unlink()
    refused(model, r"has no config\.json")


def test_conversion_refuses_a_file_cut_short(model: Path) -> None:
    file = file_of(model, "model.norm.weight")
    file.write_bytes(file.read_bytes()[:-100])
    refused(model, rf"{file.name} cannot be read .*fetch the model again")


def test_conversion_refuses_an_index_that_names_an_absent_file(model: Path) -> None:
    file = file_of(model, "model.norm.weight")
    file.unlink()
    refused(model, rf"lacks {file.name}; fetch the model again")


def test_conversion_refuses_missing_tensors(model: Path) -> None:
    change(model, "model.layers.2.mlp.up_proj.weight", None)
    refused(model, r"lacks tensors .*: model\.layers\.2\.mlp\.up_proj\.weight$")


def test_conversion_refuses_tensors_of_another_shape(model: Path) -> None:
    change(model, "model.layers.1.mlp.up_proj.weight", lambda t: t[:-1].clone())
    refused(model, r"up_proj\.weight is \(79, 48\) instead of \(80, 48\)")


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.float64])
def test_conversion_refuses_types_that_are_not_weights(model: Path, dtype: torch.dtype) -> None:
    change(model, "model.layers.1.mlp.up_proj.weight", lambda t: t.to(dtype))
    name = str(dtype).removeprefix("torch.")
    refused(model, rf"up_proj\.weight is {name}; only float32", dtype="bfloat16")


def test_conversion_refuses_a_type_unlike_the_config(model: Path) -> None:
    set_config(model, dtype="float16")
    refused(model, r"tensors of bfloat16, but its config\.json says float16; give --dtype bf")


def test_conversion_refuses_a_vocabulary_unlike_the_embeddings(model: Path) -> None:
    set_config(model, vocab_size=140)
    refused(model, r"embed_tokens\.weight has 131 rows, but the vocab_size .* is 140")


def test_conversion_refuses_a_tokenizer_beyond_the_vocabulary(model: Path) -> None:
    path = model / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"].append({"id": 131, "content": "<more>"})
    path.write_text(json.dumps(content))
    refused(model, r"token ids up to 131 \('<more>'\), and the vocab_size in config\.json is 131")


@pytest.mark.parametrize(
    ("sizes", "match"),
    [
        ((3, 1), "tensor-model-parallel-size is 3, .* has 4 attention heads; .* divides 4$"),
        ((8, 1), "tensor-model-parallel-size is 8, .* has 4 attention heads; .* divides 4$"),
        ((1, 5), "pipeline-model-parallel-size is 5, more than the model's 4 layers"),
        ((0, 1), "tensor-model-parallel-size is 0; it must be at least 1"),
    ],
)
def test_conversion_refuses_sizes_that_do_not_divide(
    model: Path, sizes: tuple[int, int], match: str
) -> None:
    names = ("tensor_model_parallel_size", "pipeline_model_parallel_size")
    refused(model, match, **dict(zip(names, sizes, strict=True)))


def test_conversion_notices_a_full_disk_before_and_in_writing(model: Path) -> None:
    output, options = model.parent / "output", {"sources": [model], "force": False}
    with (
        pytest.raises(InputError, match=r"no space left on .* free, needs 1e\+06 TB"),
        atomic_directory(output, needed=10**18, **options),
    ):
        pass
    with (
        pytest.raises(DiskFull, match="no space left"),
        atomic_directory(output, needed=0, **options),
        open("/dev/full", "wb", buffering=0) as full,
    ):
        full.write(b"x")
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_conversion_refuses_an_output_that_cannot_be_made(model: Path) -> None:
    below = model.parent / "file"
    below.write_text("")
    with pytest.raises(InputError, match=r"--output .* cannot be made: .*Not a directory"):
        convert_hf_to_megatron(str(model), str(below / "output"))


def test_conversion_refuses_a_model_of_the_other_format(model: Path) -> None:
    with pytest.raises(InputError, match="it holds the safetensors of a Hugging Face model"):
        convert_megatron_to_hf(str(model), str(model.parent / "output"))


def test_conversion_refuses_an_output_that_exists(model: Path) -> None:
    output = model.parent / "output"
    output.mkdir()
    (output / "precious").write_text("")
    with pytest.raises(InputError, match="is not empty; choose another directory, or give --force"):
        convert_hf_to_megatron(str(model), str(output))
    with pytest.raises(InputError, match="overlaps with --input"):
        convert_hf_to_megatron(str(model), str(model), force=True)
    assert (output / "precious").exists()


def test_conversion_that_fails_leaves_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(from_hugging_face, "copy_model_files", fail)
    with pytest.raises(OSError, match="no space left"):
        convert_hf_to_megatron(str(model), str(model.parent / "output"))
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_conversion_refuses_a_directory_without_checkpoint(megatron: Path) -> None:
    (megatron / "latest_checkpointed_iteration.txt").unlink()
    refused(megatron, "holds no Megatron checkpoint: neither")


@pytest.mark.parametrize("above", [True, False])
def test_find_checkpoint_refuses_the_older_format(megatron: Path, above: bool) -> None:
    shutil.rmtree(megatron / "release")
    (megatron / "release" / "mp_rank_00").mkdir(parents=True)
    refused_path = megatron if above else megatron / "release"
    with pytest.raises(InputError, match=r"release holds mp_rank_\* .*--ckpt-convert-format"):
        convert_megatron_to_hf(str(refused_path), str(megatron.parent / "output"))


@pytest.mark.parametrize("as_object", [False, True])
def test_convert_to_hf_refuses_a_config_with_other_heads(megatron: Path, as_object: bool) -> None:
    common = megatron / "release" / "common.pt"
    content = torch.load(common, weights_only=True)
    arguments = argparse.Namespace(num_attention_heads=8, program=pathlib.PurePath("megatron"))
    if as_object:
        store_common_as_object(common.parent, args=arguments)
    else:
        torch.save(content | {"args": arguments}, common)
    refused(megatron, r"num_attention_heads 8, and config\.json says 4")


def test_conversion_refuses_a_marker_that_names_nothing(megatron: Path) -> None:
    (megatron / "latest_checkpointed_iteration.txt").write_text("30")
    refused(megatron, "says '30', but .*iter_0000030 holds no checkpoint")


def test_conversion_refuses_a_shard_cut_short_or_missing(megatron: Path) -> None:
    file = megatron / "release" / "__1_0.distcp"
    file.write_bytes(file.read_bytes()[:-100])
    refused(megatron, r"__1_0\.distcp has \d+ of \d+ bytes; copy the checkpoint again")
    file.unlink()
    refused(megatron, r"__1_0\.distcp is missing")


def test_conversion_refuses_a_damaged_index(megatron: Path) -> None:
    (megatron / "release" / ".metadata").write_bytes(b"\x80\x04nonsense")
    refused(megatron, r"\.metadata cannot be read")


def test_conversion_refuses_a_checkpoint_without_model_files(megatron: Path) -> None:
    (megatron / "config.json").unlink()
    refused(megatron, r"no config\.json in .*give --model-files")


def test_conversion_refuses_files_of_another_model(megatron: Path) -> None:
    set_config(megatron, intermediate_size=96)
    refused(megatron, r"linear_fc1\.weight is \(160, 48\) instead of \(192, 48\)")
    set_config(megatron, intermediate_size=80, vocab_size=200)
    refused(megatron, "embedding has 132 rows, but the vocab_size .* is 200")
    set_config(megatron, vocab_size=131, tie_word_embeddings=True)
    refused(megatron, "has an output matrix of its own, but config.json ties it")
    for layers in (3, 5):
        kinds = ["full_attention"] * layers
        set_config(megatron, tie_word_embeddings=False, num_hidden_layers=layers, layer_types=kinds)
        refused(megatron, r"input_layernorm\.weight is \(4, 48\) instead of \(48,\)")


def test_conversion_refuses_fewer_layers_than_stored(model: Path) -> None:
    set_config(model, num_hidden_layers=3, layer_types=["full_attention"] * 3)
    refused(model, r"holds parameters of layers .*: model\.layers\.3\.input_layernorm\.weight")


def test_conversion_refuses_parameters_unknown_to_the_family(model: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    file = file_of(model, name)
    bias = name.replace("weight", "bias")
    save_file(load_file(file) | {bias: torch.ones(80, dtype=torch.bfloat16)}, file)
    index = json.loads((model / INDEX).read_text())
    index["weight_map"][bias] = file.name
    (model / INDEX).write_text(json.dumps(index))
    refused(model, r"holds parameters of layers .*: model\.layers\.1\.mlp\.up_proj\.bias;")


@pytest.mark.parametrize("size", ["0GB", "5 parsecs", "", "5", "500", "999KB"])
def test_conversion_refuses_a_size_that_is_none(megatron: Path, size: str) -> None:
    refused(megatron, "--max-shard-size is .*give a size such as", max_shard_size=size)
