"""Converted models on real ranks, and checkpoints that real ranks wrote, back as models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_conversion
import tiny_families as tiny
import torch
from ranks import run_ranks

from megatron_resrl.conversion.from_hugging_face import convert_hf_to_megatron
from megatron_resrl.conversion.to_hugging_face import convert_megatron_to_hf
from megatron_resrl.errors import InputError

CASES = (
    *("tp2 llama", "tp2 qwen2", "tp2 mistral", "tp2 qwen3_moe"),
    *("pp2 llama", "pp2 qwen2", "pp2 qwen3_moe", "pp2 qwen3_moe_mixed"),
    *("pp2_vpp2 llama", "pp2_vpp2 qwen2", "ep2 qwen3_moe"),
    *("ep2 qwen3_moe_mixed", "ep2 mixtral"),
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, converted ones, and what two ranks wrote after loading those."""
    folder = tmp_path_factory.mktemp("conversion")
    tiny.write_families(folder / "models")
    for family, (tensor, pipeline) in tiny_conversion.CONVERTED.items():
        convert_hf_to_megatron(
            str(folder / "models" / family), str(folder / "converted" / family), tensor, pipeline
        )
    output = run_ranks(
        Path(__file__).with_name("ranks_conversion.py"),
        2,
        folder / "models",
        folder / "converted",
        folder / "written",
        timeout=300,
    )
    line = next(line for line in output.splitlines() if line.startswith("RESULT "))
    (folder / "found.json").write_text(line.removeprefix("RESULT "))
    return folder


@pytest.mark.parametrize("case", CASES)
def test_ranks_of_another_layout_hold_the_original_bits(work: Path, case: str) -> None:
    found: dict[str, Any] = json.loads((work / "found.json").read_text())
    assert found[case] == [[], []]


def to_hf(work: Path, source: Path, name: str, family: str, **options: Any) -> Path:
    target = work / "back" / name
    convert_megatron_to_hf(
        str(source), str(target), model_files=str(work / "models" / family), force=True, **options
    )
    return target


@pytest.mark.parametrize("case", CASES)
def test_legacy_files_of_real_ranks_give_the_original_bits(work: Path, case: str) -> None:
    family = case.split()[1]
    back = to_hf(work, work / "written" / "legacy" / case, case, family)
    want = tiny_conversion.tensors(work / "models" / family)
    assert tiny_conversion.differing(tiny_conversion.tensors(back), want) == []


@pytest.mark.parametrize("layout", ["tp2", "pp2"])
def test_a_runs_checkpoint_gives_the_trained_weights_with_the_files_in_its_hf_folder(
    work: Path, layout: str
) -> None:
    step = work / "written" / "run" / layout / "checkpoints" / "step_000012"
    (step / "hf").mkdir(exist_ok=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(work / "models" / "qwen2" / name, step / "hf" / name)
    back = work / "back" / f"run {layout}"
    report = convert_megatron_to_hf(str(step), str(back))
    original = tiny_conversion.tensors(work / "models" / "qwen2")
    want = {name: tensor * 1.5 for name, tensor in original.items()}
    assert tiny_conversion.differing(tiny_conversion.tensors(back), want) == []
    assert report.unexpected == ()
    assert (back / "tokenizer.json").is_file()


def older(content: dict[str, Any]) -> dict[str, Any]:
    """The same checkpoint as Megatron-LM wrote it before megatron-core."""
    encoder, embedding, output = {}, {}, {}
    renamed = {
        "self_attention.linear_qkv": "self_attention.query_key_value",
        "self_attention.linear_proj": "self_attention.dense",
        "pre_mlp_layernorm": "post_attention_norm",
        "input_layernorm": "input_norm",
        "mlp.linear_fc1": "mlp.dense_h_to_4h",
        "mlp.linear_fc2": "mlp.dense_4h_to_h",
        "final_layernorm": "final_norm",
    }
    for name, tensor in content["model"].items():
        for new, old in renamed.items():
            name = name.replace(new, old)
        if name.startswith("decoder."):
            encoder[name.removeprefix("decoder.")] = tensor
        elif name.startswith("embedding.word_embeddings."):
            embedding = {"word_embeddings": {"weight": tensor}}
        elif name == "output_layer.weight":
            output["weight"] = tensor
    encoder["rotary_pos_emb.inv_freq"] = torch.ones(4)
    model = {"embedding": embedding, "encoder": encoder, "output_layer": output}
    return content | {"model": {"language_model": model}}


@pytest.fixture
def rewritten(work: Path, tmp_path: Path):
    """Copies the legacy checkpoint of llama on TP2 with every rank's content changed."""

    def rewrite(change: Any) -> Path:
        source = work / "written" / "legacy" / "tp2 llama" / "iter_0000020"
        for file in source.rglob("*.pt"):
            target = tmp_path / "iter_0000020" / file.relative_to(source)
            target.parent.mkdir(parents=True)
            content = torch.load(file, weights_only=False, pickle_module=inert_pickle)
            content["args"].position_embedding_type = None
            del content["rng_state"]
            torch.save(change(content), target)
        return tmp_path / "iter_0000020"

    from megatron_resrl.weights import inert_pickle

    return rewrite


def test_names_from_before_megatron_core_are_read(work: Path, rewritten) -> None:
    back = to_hf(work, rewritten(older), "older", "llama")
    want = tiny_conversion.tensors(work / "models" / "llama")
    assert tiny_conversion.differing(tiny_conversion.tensors(back), want) == []


def test_names_of_transformer_engine_are_read(work: Path, rewritten) -> None:
    def fused(content: dict[str, Any]) -> dict[str, Any]:
        renamed = {
            "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
            "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
        }
        model = {}
        for name, tensor in content["model"].items():
            for own, fused_name in renamed.items():
                name = name.replace(own, fused_name)
            model[name] = tensor
        return content | {"model": model}

    back = to_hf(work, rewritten(fused), "fused", "llama")
    want = tiny_conversion.tensors(work / "models" / "llama")
    assert tiny_conversion.differing(tiny_conversion.tensors(back), want) == []


def test_an_older_order_of_queries_keys_and_values_is_refused(work: Path, rewritten) -> None:
    folder = rewritten(lambda content: content | {"checkpoint_version": 1.0})
    with pytest.raises(InputError, match=r"checkpoint_version 1\.0"):
        to_hf(work, folder, "refused", "llama")


def test_a_missing_rank_is_named(work: Path, rewritten) -> None:
    folder = rewritten(dict)
    shutil.rmtree(folder / "mp_rank_01")
    with pytest.raises(InputError, match=r"mp_rank_01/model_optim_rng\.pt is missing"):
        to_hf(work, folder, "refused", "llama")


def test_sizes_other_than_the_files_are_refused(work: Path) -> None:
    legacy = work / "written" / "legacy" / "tp2 llama"
    with pytest.raises(InputError, match=r"tensor-model-parallel-size is 4.*saved with 2"):
        to_hf(work, legacy, "refused", "llama", tensor_model_parallel_size=4)
    with pytest.raises(InputError, match=r"pipeline-model-parallel-size is 2.*saved with 1"):
        to_hf(work, legacy, "refused", "llama", pipeline_model_parallel_size=2)


def test_a_configuration_with_other_heads_is_refused(work: Path, rewritten) -> None:
    def more_heads(content: dict[str, Any]) -> dict[str, Any]:
        content["args"].num_attention_heads = 8
        return content

    with pytest.raises(InputError, match=r"num_attention_heads 8, and config\.json says 4"):
        to_hf(work, rewritten(more_heads), "refused", "llama")
    assert not (work / "back" / "refused").exists()
