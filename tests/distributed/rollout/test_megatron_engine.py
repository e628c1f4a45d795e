"""The embedded engine against transformers' `generate`, in every layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ranks import run_ranks
from tiny_families import write_families

SCRIPT = Path(__file__).with_name("ranks_rollout.py")
FAMILIES = ("llama", "qwen2", "qwen3", "qwen3_moe")


@pytest.fixture(scope="module")
def decoded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Results of all layouts, `"<family> <layout>"` -> what the ranks found."""
    paths = write_families(tmp_path_factory.mktemp("models"))
    models = [paths[family] for family in FAMILIES]
    found: dict[str, dict] = {}
    for world in (1, 2, 4):
        out = run_ranks(SCRIPT, world, *models, timeout=300)
        line = next(line for line in out.splitlines() if line.startswith("RESULT "))
        found |= json.loads(line.removeprefix("RESULT "))
    return found


def _layouts(decoded: dict[str, dict], family: str) -> dict[str, dict]:
    return {
        name: result
        for name, result in decoded.items()
        if name.startswith(f"{family} ") and not name.endswith(" reference")
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_output_equals_transformers_token_for_token_in_every_layout(decoded, family):
    reference = decoded[f"{family} reference"]
    layouts = _layouts(decoded, family)
    assert len(layouts) == (6 if family == "qwen3_moe" else 9)
    for name, result in layouts.items():
        assert result["greedy"] == [[answer, answer] for answer in reference], name
        assert result["alone"] == [reference[0]] * 2, name


@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_tokens_do_not_depend_on_the_layout(decoded, family):
    layouts = _layouts(decoded, family)
    single = decoded[f"{family} TP1"]
    assert len({tuple(tokens) for tokens in single["sampled"]}) > 5
    for name, result in layouts.items():
        assert result["sampled"] == single["sampled"], name


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_after_scoring_gives_the_same_tokens(decoded, family):
    for name, result in _layouts(decoded, family).items():
        assert result["repeated"] == result["sampled"], name


@pytest.mark.parametrize("family", FAMILIES)
def test_engine_log_probs_equal_the_trainers(decoded, family):
    for name, result in _layouts(decoded, family).items():
        # Both fp32, through different kernels and padding.
        assert result["difference"] < 2e-5, name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_response_says_why_it_ended(decoded, family):
    single = decoded[f"{family} TP1"]
    for tokens, reason in zip(single["sampled"], single["reasons"], strict=True):
        assert reason == ("stop" if tokens[-1] <= 8 else "length")
        assert (len(tokens) == 14) or reason == "stop"
        assert all(token > 8 or token == 0 for token in tokens[:-1])
    assert {"stop", "length"} == set(single["reasons"])
