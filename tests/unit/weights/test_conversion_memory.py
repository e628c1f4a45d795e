"""A conversion holds a file and a layer, never the model."""

from __future__ import annotations

import argparse
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


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 layers, 415 MB, in files of at most 60 MB."""
    path = tmp_path_factory.mktemp("large") / "model"
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
    return path


def measure(direction: str, source: Path, target: Path) -> dict[str, int]:
    script = Path(__file__).with_name("measure_conversion.py")
    paths = [str(REPOSITORY), str(REPOSITORY / "tests")]
    output = subprocess.run(
        [sys.executable, script, direction, source, target, f"{SHARD // 10**6}MB"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return json.loads(output.splitlines()[-1])


def assert_bounded(found: dict[str, int]) -> None:
    assert found["bytes"] > 3.5 * (SHARD + 2 * LAYER)
    assert found["added"] < SHARD + 2 * LAYER


def test_both_directions_hold_less_than_a_file_and_two_layers(model: Path, tmp_path: Path) -> None:
    assert_bounded(measure("to_megatron", model, tmp_path / "megatron"))
    assert_bounded(measure("to_hf", tmp_path / "megatron", tmp_path / "back"))


def test_legacy_files_are_not_held_either(model: Path, tmp_path: Path) -> None:
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
    folder = tmp_path / "iter_0000001" / "mp_rank_00"
    folder.mkdir(parents=True)
    content = {"args": argparse.Namespace(), "checkpoint_version": 3.0, "model": state}
    torch.save(content, folder / "model_optim_rng.pt")
    (folder.parent / "config.json").write_bytes((model / "config.json").read_bytes())
    assert_bounded(measure("to_hf", folder.parent, tmp_path / "back"))
