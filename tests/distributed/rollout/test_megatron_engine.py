"""The embedded engine against transformers' `generate`, in every layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ranks import run_ranks
from tiny_families import write_families

SCRIPT = Path(__file__).with_name("ranks_rollout.py")
LAYOUTS = {
    "default": {
        "llama": 1,
        "qwen2": 1,
        "qwen3": 9,
        "qwen3_moe": 6,
        "mistral": 1,
        "mixtral": 2,
        "gemma3": 3,
        "qwen3_windowed": 3,
        "mixtral_windowed": 2,
    },
    "slow": {"llama": 9, "qwen2": 9, "mixtral": 6},
}
"""How many layouts each family decodes in."""


@pytest.fixture(scope="module", params=["default", pytest.param("slow", marks=pytest.mark.slow)])
def decoded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict]:
    """Results of a part of the layouts, `"<family> <layout>"` -> what the ranks found."""
    part = request.param
    paths = write_families(tmp_path_factory.mktemp("models"), LAYOUTS[part])
    models = [paths[family] for family in LAYOUTS[part]]
    found: dict[str, dict] = {}
    for world in (1, 2, 4):
        out = run_ranks(SCRIPT, world, part, *models)
        line = next(line for line in out.splitlines() if line.startswith("RESULT "))
        found |= json.loads(line.removeprefix("RESULT "))
    expected = {family: len(_layouts(found, family)) for family in LAYOUTS[part]}
    assert expected == LAYOUTS[part]
    return found


@pytest.fixture(params=LAYOUTS["default"])
def family(request: pytest.FixtureRequest, decoded: dict[str, dict]) -> str:
    """One of the families that were decoded."""
    if f"{request.param} reference" not in decoded:
        pytest.skip("decodes in all of its layouts by default")
    return request.param


def _layouts(decoded: dict[str, dict], family: str) -> dict[str, dict]:
    return {
        name: result
        for name, result in decoded.items()
        if name.startswith(f"{family} ") and not name.endswith(" reference")
    }


def test_megatron_engine_equals_transformers_in_every_layout(decoded, family):
    reference = decoded[f"{family} reference"]
    layouts = _layouts(decoded, family)
    for name, result in layouts.items():
        assert result["greedy"] == [[answer, answer] for answer in reference], name
        assert result["alone"] == [reference[0]] * 2, name


def test_megatron_engine_samples_alike_in_every_layout(decoded, family):
    layouts = _layouts(decoded, family)
    single = decoded[f"{family} TP1"]
    assert len({tuple(tokens) for tokens in single["sampled"]}) > 5
    for name, result in layouts.items():
        assert result["sampled"] == single["sampled"], name


def test_megatron_engine_decodes_alike_after_scoring(decoded, family):
    for name, result in _layouts(decoded, family).items():
        assert result["repeated"] == result["sampled"], name


def test_megatron_engine_has_the_trainers_log_probs(decoded, family):
    for name, result in _layouts(decoded, family).items():
        # Both fp32, through different kernels and padding.
        assert result["difference"] < 2e-5, name


def test_megatron_engine_says_why_a_response_ended(decoded, family):
    single = decoded[f"{family} TP1"]
    for tokens, reason in zip(single["sampled"], single["reasons"], strict=True):
        assert reason == ("stop" if tokens[-1] <= 8 else "length")
        assert (len(tokens) == 14) or reason == "stop"
        assert all(token > 8 or token == 0 for token in tokens[:-1])
    assert {"stop", "length"} == set(single["reasons"])
