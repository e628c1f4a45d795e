"""What vLLM's trainer-side classes are given, on real ranks; the classes themselves need GPUs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ranks import run_ranks
from vllm_server import write_served

SCRIPT = Path(__file__).with_name("ranks_device_source.py")


@pytest.mark.parametrize(
    "layout", [{"tensor_model_parallel_size": 2}, {"pipeline_model_parallel_size": 2}]
)
def test_policy_source_announces_what_comes_after_a_broken_pass(tmp_path, layout):
    model = write_served(tmp_path / "model", "llama_tied", seed=1)
    out = run_ranks(SCRIPT, 2, model, json.dumps(layout))
    line = next(line for line in out.splitlines() if line.startswith("RESULT "))
    found = json.loads(line.removeprefix("RESULT "))
    assert found["told"] == found["came"]
    assert found["bytes"][0] == found["bytes"][1]
    # The plan's tensors are those of mbridge's own export.
    assert found["same"]
    names = [name for name, *_ in found["told"]]
    # vLLM on CPU keeps a copy of a tied output matrix.
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= set(names)
