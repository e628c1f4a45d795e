"""Fine-tuning learns the same in every layout, packed or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ranks import run_ranks
from tiny_chat import write_chat_model, write_chat_task
from tiny_task import read_metrics

SCRIPT = Path(__file__).with_name("ranks_sft.py")
PADDED = {"batch": {"sequence_packing": False, "micro_batch_size": 3}}
BINS = {"batch": {"tokens_per_micro_batch": 60}}
SYSTEM = {"system_prompt": "5 9 8 7 6 5 4 3"}
"""In front of every conversation, so that all begin alike."""
SHARED = {"batch": {"tokens_per_micro_batch": 80, "shared_prefixes": "auto"}, "data": SYSTEM}
TWO_RANKS: dict[str, dict[str, Any]] = {
    "TP2+SP": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "PP2": {"pipeline_model_parallel_size": 2},
    "CP2": {"context_parallel_size": 2},
    "DP2": {},
    "padded DP2": {},
    "EP2": {"expert_model_parallel_size": 2},
}
SHARED_LAYOUTS = ("CP2", "TP2+SP")
SAME = ("loss", "grad_norm", "targets", "data/tokens", "eval/held/loss", "eval/held/targets")
TOLERANCE = 1e-5
"""Relative, over four steps of Adam: fp32 sums in other orders differ by some 1e-7."""


def write(folder: Path, name: str, model: Path, **sections: Any) -> Path:
    (folder / name).mkdir()
    return write_chat_task(folder / name, model={"path": str(model)}, **sections)


def curve(folder: Path, name: str) -> list[dict[str, float]]:
    lines = read_metrics(folder / name / "run")
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    return [{key: line[key] for key in SAME if key in line} for line in lines]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on one rank: `packed`, `bins`, `padded`, and `experts`."""
    folder = tmp_path_factory.mktemp("sft")
    dense = write_chat_model(folder / "dense")
    sparse = write_chat_model(folder / "sparse", experts=True)
    recipes = [
        write(folder, "packed", dense),
        write(folder, "bins", dense, **BINS),
        write(folder, "padded", dense, **PADDED),
        write(folder, "experts", sparse),
        write(folder, "copies", dense, data=SYSTEM),
        write(folder, "shared", dense, **SHARED),
    ]
    run_ranks(SCRIPT, 1, *recipes)
    return folder


@pytest.mark.setting("sft:batch.sequence_packing", "sft:batch.micro_batch_size")
@pytest.mark.parametrize("other", ["bins", "padded"])
def test_sft_learns_the_same_packed_and_padded(folder, other):
    for ours, theirs in zip(curve(folder, other), curve(folder, "packed"), strict=True):
        assert ours == pytest.approx(theirs, rel=TOLERANCE)


def compare_shared(folder: Path, name: str) -> None:
    for ours, theirs in zip(curve(folder, name), curve(folder, "copies"), strict=True):
        assert ours == pytest.approx(theirs, rel=TOLERANCE)
    saved = [line["step/shared_prompt_tokens"] for line in read_metrics(folder / name / "run")[1:]]
    assert min(saved) > 0


@pytest.mark.setting("sft:batch.shared_prefixes")
def test_sft_learns_the_same_with_shared_prefixes(folder):
    compare_shared(folder, "shared")


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED_LAYOUTS)
def test_sft_shares_prefixes_in_every_layout(folder, name):
    recipe = write(folder, f"shared {name}", folder / "dense", parallel=TWO_RANKS[name], **SHARED)
    run_ranks(SCRIPT, 2, recipe)
    compare_shared(folder, f"shared {name}")


@pytest.mark.parametrize("name", TWO_RANKS)
def test_sft_learns_the_same_in_every_layout(folder, name):
    model, expected = ("sparse", "experts") if name == "EP2" else ("dense", "packed")
    cut = PADDED if "padded" in name else BINS
    recipe = write(folder, name, folder / model, parallel=TWO_RANKS[name], **cut)
    run_ranks(SCRIPT, 2, recipe)
    for ours, theirs in zip(curve(folder, name), curve(folder, expected), strict=True):
        assert ours == pytest.approx(theirs, rel=TOLERANCE)
