"""A model converted for Megatron-LM is one that megatron-core alone can build and load."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_conversion
import tiny_families
import tiny_megatron_lm as tiny
import torch
from transformers import AutoModelForCausalLM

from megatron_resrl.conversion.from_hugging_face import convert_hf_to_megatron
from megatron_resrl.conversion.to_hugging_face import convert_megatron_to_hf
from megatron_resrl.errors import InputError
from megatron_resrl.policy.families import family_of, find_family
from megatron_resrl.policy.families.megatron_lm import config_from_arguments
from megatron_resrl.weights.config_json import read_arguments

TESTS = Path(__file__).parents[2]
SIZES = {"llama": (2, 2), "qwen2": (2, 1), "qwen3": (1, 2), "mixtral": (2, 1), "qwen3_moe": (1, 2)}
READ_BY_LOAD_ARGS = (
    *("num_layers", "hidden_size", "ffn_hidden_size", "seq_length", "num_attention_heads"),
    *("num_query_groups", "group_query_attention", "kv_channels", "max_position_embeddings"),
    *("position_embedding_type", "add_position_embedding", "use_rotary_position_embeddings"),
    *("rotary_base", "rotary_percent", "rotary_interleaved", "add_bias_linear", "add_qkv_bias"),
    *("squared_relu", "swiglu", "untie_embeddings_and_output_weights", "apply_layernorm_1p"),
    *("normalization", "apply_query_key_layer_scaling", "attention_dropout", "hidden_dropout"),
    *("padded_vocab_size", "ckpt_format", "tensor_model_parallel_size"),
    *("pipeline_model_parallel_size", "expert_model_parallel_size"),
)
"""What `load_args_from_checkpoint` of Megatron-LM takes from a checkpoint of a dense model, from
core_r0.11.0 to core_v0.19.0, without what stays unset there."""
READ_OF_EXPERTS = (
    *("num_experts", "moe_layer_freq", "moe_ffn_hidden_size", "moe_router_topk"),
    *("moe_router_pre_softmax", "moe_router_score_function"),
)
"""Likewise, of a model with experts."""
READ_BY_CHECK_ARGS = (
    *("num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings"),
    *("make_vocab_size_divisible_by", "tokenizer_type", "data_parallel_random_init"),
)
"""What `check_checkpoint_args` reads without a default, where `--finetune` is not given."""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("for_megatron_lm")
    for number, (name, config) in enumerate(tiny.CONFIGS.items()):
        torch.manual_seed(number)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        tiny_families.randomise(model)
        model.save_pretrained(folder / "hf" / name)
        convert_hf_to_megatron(
            str(folder / "hf" / name),
            str(folder / "megatron" / name),
            *SIZES[name],
            format="megatron-lm",
        )
    return folder


def arguments(work: Path, name: str) -> dict[str, Any]:
    return read_arguments(work / "megatron" / name / "release")


def test_megatron_core_alone_computes_transformers_logits(work: Path) -> None:
    command = [sys.executable, "-W", "ignore", Path(__file__).with_name("megatron_core_alone.py")]
    command += ["local"]
    for name in tiny.CONFIGS:
        command += [work / f"{name}.pt", work / "megatron" / name]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in tiny.CONFIGS:
        with torch.no_grad():
            want = tiny_families.read_model(work / "hf" / name)(tiny.TOKENS).logits[0]
        found = torch.load(work / f"{name}.pt")
        assert found.shape == (tiny.TOKENS.shape[1], 256)
        torch.testing.assert_close(found[:, : tiny.VOCABULARY], want, atol=1e-5, rtol=0)
        assert not found[:, tiny.VOCABULARY :].any()


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_arguments_are_those_that_megatron_lm_reads(work: Path, name: str) -> None:
    found = arguments(work, name)
    wanted = READ_BY_LOAD_ARGS + READ_BY_CHECK_ARGS
    if found["num_experts"] is not None:
        wanted += READ_OF_EXPERTS
    assert [key for key in wanted if found.get(key) is None] == []
    by_hand = vars(tiny.arguments(tiny.CONFIGS[name]))
    of_this_file = ("vocab_size", "moe_router_load_balancing_type")
    compared = (by_hand.keys() & found.keys()) - set(of_this_file)
    assert len(compared) > 30
    assert {key: found[key] for key in compared} == {key: by_hand[key] for key in compared}
    assert found["vocab_size"] == tiny.VOCABULARY
    tensor, pipeline = SIZES[name]
    assert found["tensor_model_parallel_size"] == tensor
    assert found["pipeline_model_parallel_size"] == pipeline


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_arguments_give_the_same_family_again(work: Path, name: str) -> None:
    config = config_from_arguments(arguments(work, name), tiny.VOCABULARY, {})
    again, family = find_family(config), family_of(tiny.CONFIGS[name])
    assert type(again) is type(family)
    assert again.transformer_fields() == family.transformer_fields()
    assert again.rotary == family.rotary
    assert (again.tied, again.windowed_layers) == (family.tied, family.windowed_layers)


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_checkpoint_for_megatron_lm_returns_every_tensor(
    work: Path, tmp_path: Path, name: str
) -> None:
    megatron = Path(shutil.copytree(work / "megatron" / name, tmp_path / "megatron"))
    (megatron / "config.json").unlink()
    convert_megatron_to_hf(str(megatron), str(tmp_path / "back"))
    tensors = tiny_conversion.tensors(tmp_path / "back")
    # Without config.json and tokenizer, the argument says the vocabulary.
    assert tiny_conversion.differing(tensors, tiny_conversion.tensors(work / "hf" / name)) == []


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("qwen3", r"rotary embedding is .*'yarn'.*; Megatron-LM's arguments say plain ones"),
        ("gemma3", r"rotary embedding is .*'linear'"),
    ],
)
def test_conversion_for_megatron_lm_refuses_by_name(tmp_path: Path, name: str, match: str) -> None:
    model = tiny_families.write_families(tmp_path / "hf", [name])[name]
    with pytest.raises(InputError, match=f"--format megatron-lm: .*{match}"):
        convert_hf_to_megatron(str(model), str(tmp_path / "out"), format="megatron-lm")
    assert not (tmp_path / "out").exists()
