"""What a machine without CUDA needs for megatron-core leaves everybody else alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_families as tiny
import torch
from ranks import run_ranks
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bool]:
    if torch.cuda.is_available():
        pytest.skip("CUDA is there: nothing is adapted")
    path = tiny.write_families(tmp_path_factory.mktemp("families"), ["qwen3"])["qwen3"]
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        torch.save(model(torch.arange(20)[None]).logits, path / "logits.pt")
    script = Path(__file__).with_name("ranks_adaptation.py")
    output = run_ranks(script, 1, path, path / "logits.pt")
    return json.loads(output.splitlines()[-1])["found"]


def test_adaptation_leaves_models_of_transformers_the_same(found: dict) -> None:
    assert found["same_logits"]


def test_adaptation_keeps_device_contexts(found: dict) -> None:
    assert found["meta_context"]


def test_adaptation_makes_cuda_mean_the_cpu(found: dict) -> None:
    assert found["cuda_names_cpu"]


def test_adaptation_lets_tensors_change_their_type(found: dict) -> None:
    assert found["dtype_change"]


def test_adaptation_sends_a_single_rank_nothing_of_its_own(found: dict) -> None:
    assert found["own_buffers_stay"]
