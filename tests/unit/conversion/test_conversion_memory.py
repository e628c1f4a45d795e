"""A conversion holds a file and a layer, never the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

REPOSITORY = Path(__file__).resolve().parents[3]
LAYERS = 16
HIDDEN, INNER, VOCABULARY = 1024, 2816, 1024
LAYER = 2 * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * INNER)
"""Bytes in bfloat16: 25.7 million."""
SHARD = 60 * 10**6


def write_model(path: Path) -> None:
    """16 layers, 415 MB, in files of at most 60 MB."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=8,
        dtype=torch.bfloat16,
    )
    with torch.device("meta"):
        empty = LlamaForCausalLM(config).to(torch.bfloat16)
    empty.to_empty(device="cpu").save_pretrained(path, max_shard_size=SHARD)


def write_legacy(path: Path, config: bytes) -> None:
    """A Megatron-LM checkpoint of the same shape, of one rank."""
    layer = {
        "input_layernorm.weight": (HIDDEN,),
        "self_attention.linear_qkv.weight": (3 * HIDDEN, HIDDEN),
        "self_attention.linear_proj.weight": (HIDDEN, HIDDEN),
        "pre_mlp_layernorm.weight": (HIDDEN,),
        "mlp.linear_fc1.weight": (2 * INNER, HIDDEN),
        "mlp.linear_fc2.weight": (HIDDEN, INNER),
    }
    shapes = {
        "embedding.word_embeddings.weight": (VOCABULARY, HIDDEN),
        "decoder.final_layernorm.weight": (HIDDEN,),
        "output_layer.weight": (VOCABULARY, HIDDEN),
    }
    for number in range(LAYERS):
        shapes |= {f"decoder.layers.{number}.{name}": shape for name, shape in layer.items()}
    state = {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    (path / "mp_rank_00").mkdir(parents=True)
    (path / "config.json").write_bytes(config)
    torch.save(
        {"checkpoint_version": 3.0, "model": state}, path / "mp_rank_00" / "model_optim_rng.pt"
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    folder = tmp_path_factory.mktemp("large")
    write_model(folder / "model")
    write_legacy(folder / "legacy", (folder / "model" / "config.json").read_bytes())
    paths = [str(REPOSITORY), str(REPOSITORY / "tests")]
    script = Path(__file__).with_name("measure_conversion.py")
    output = subprocess.run(
        [sys.executable, script, folder, f"{SHARD // 10**6}MB"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
    ).stdout
    return json.loads(output.splitlines()[-1])


@pytest.mark.parametrize("name", ["to Megatron", "to Hugging Face", "legacy to Hugging Face"])
def test_less_than_a_file_and_two_layers_are_held(found: dict, name: str) -> None:
    assert found[name]["bytes"] > 3.5 * (SHARD + 2 * LAYER)
    assert found[name]["added"] < SHARD + 2 * LAYER
