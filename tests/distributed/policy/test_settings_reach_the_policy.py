"""Layout, formats and passed-through fields of a recipe, in the policy of four ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_families as tiny
from ranks import run_ranks

Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Layout -> what arrived."""
    folder = tmp_path_factory.mktemp("models")
    tiny.write_families(folder, ["llama", "qwen3_moe"])
    out = run_ranks(Path(__file__).with_name("ranks_settings.py"), 4, folder)
    lines = [json.loads(line) for line in out.split("\n") if line.startswith("{")]
    return {line["layout"]: line for line in lines}


@pytest.mark.setting("parallel.tensor_model_parallel_size")
@pytest.mark.setting("parallel.pipeline_model_parallel_size")
@pytest.mark.setting("parallel.virtual_pipeline_model_parallel_size")
def test_parallel_sizes_split_matrices_and_layers(found: Found) -> None:
    dense = found["dense"]
    assert (dense["tensor"], dense["pipeline"], dense["chunks"]) == (2, 2, 2)


@pytest.mark.setting("parallel.context_parallel_size")
def test_parallel_sizes_split_sequences(found: Found) -> None:
    assert found["context"]["context"] == 2


@pytest.mark.setting("parallel.expert_model_parallel_size")
@pytest.mark.setting("parallel.expert_tensor_parallel_size")
def test_parallel_sizes_split_experts(found: Found) -> None:
    assert (found["experts"]["expert"], found["experts"]["expert_tensor"]) == (4, 1)


@pytest.mark.setting("parallel.sequence_parallel", "parallel.use_distributed_optimizer")
def test_parallel_settings_split_tokens_and_optimizer_states(found: Found) -> None:
    assert [found[name]["sequence_parallel"] for name in ("dense", "context")] == [True, False]
    assert [found[name]["distributed_optimizer"] for name in ("dense", "context")] == [False, True]


@pytest.mark.setting("parallel.timeout_minutes")
def test_policy_collectives_end_after_timeout_minutes(found: Found) -> None:
    assert found["dense"]["timeout"] == 90


@pytest.mark.setting("parallel.ddp", "model.megatron", "optimizer.megatron")
def test_megatron_fields_reach_the_policy(found: Found) -> None:
    dense = found["dense"]
    assert dense["overlap_grad_reduce"] is True
    assert dense["init_method_std"] == 0.5
    assert dense["decoupled_weight_decay"] is False


@pytest.mark.setting("model.recompute_granularity")
def test_policy_recompute_settings_recompute_activations(found: Found) -> None:
    assert found["dense"]["recompute"] == "selective"
