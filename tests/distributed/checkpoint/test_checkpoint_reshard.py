"""A checkpoint of one layout continues under another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_checkpoint as tiny
from ranks import run_ranks

SCRIPT = Path(__file__).with_name("ranks_checkpoint_reshard.py")
CASES = (
    "TP2 to one, qwen3",
    "PP2 to one, tied_llama",
    "DP2 to one, qwen3",
    "one to TP2, qwen3",
    "one to DP2, qwen3",
    "one to CP2, qwen3",
    "TP2 to PP2, qwen3",
    "PP2 to TP2, tied_llama",
    "TP2xEP2 to one, qwen3_moe",
    "plain DP2xEP2 to plain one, qwen3_moe",
    "one to TP2xEP2, qwen3_moe",
)


@pytest.fixture(scope="module")
def resharded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    """What every rank found, by case."""
    work = tmp_path_factory.mktemp("reshard")
    models = tiny.write_models(work / "models")
    for world in (1, 2):
        run_ranks(SCRIPT, world, "write", models, work)
    found: dict[str, list[dict]] = {}
    for world in (1, 2):
        out = run_ranks(SCRIPT, world, "read", models, work)
        line = next(line for line in out.splitlines() if line.startswith("RESULT "))
        found |= json.loads(line.removeprefix("RESULT "))
    return found


@pytest.mark.parametrize("case", CASES)
def test_reshard_keeps_the_bits_of_weights_and_moments(resharded, case):
    for rank in resharded[case]:
        assert rank["weights that differ"] == []
        stored = rank["stored tensors"]
        assert stored["differing"] == stored["only in the second"] == stored["zero moments"] == []
        assert stored["moments"] > 10


@pytest.mark.parametrize("case", CASES)
def test_reshard_takes_the_next_step_of_the_other_layout(resharded, case):
    for rank in resharded[case]:
        # The same sums in fp32, in another order.
        expected, found = rank["grad norms"]
        assert found == pytest.approx(expected, rel=1e-5)
        # Adam (epsilon 1e-3, learning rate 1e-2) turns gradient noise of 1e-7 into 1e-6; a
        # moment that went to another weight would change the step itself, 1e-3 and more.
        assert rank["after another step"] < 1e-5
        assert rank["moved by that step"] > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_reshard_says_that_random_generators_start_anew(resharded, case):
    first, *others = (rank["warnings"] for rank in resharded[case])
    assert len(first) == 1
    assert "random generators start anew" in first[0]
    assert not any(others)
