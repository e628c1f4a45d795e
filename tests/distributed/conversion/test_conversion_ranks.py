"""Converted models on real ranks, and checkpoints that real ranks wrote, back as models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_conversion
import tiny_families as tiny
from ranks import run_ranks

from megatron_resrl.conversion.from_hugging_face import convert_hf_to_megatron
from megatron_resrl.conversion.to_hugging_face import convert_megatron_to_hf

CASES = (
    *("tp2 llama", "tp2 qwen2", "tp2 mistral", "tp2 qwen3_moe", "tp2 gemma3"),
    *("pp2 llama", "pp2 qwen2", "pp2 qwen3_moe", "pp2 qwen3_moe_mixed"),
    *("pp2_vpp2 llama", "pp2_vpp2 qwen2", "ep2 qwen3_moe"),
    *("ep2 qwen3_moe_mixed", "ep2 mixtral"),
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, converted ones, and what two ranks wrote after loading those."""
    folder = tmp_path_factory.mktemp("conversion")
    tiny.write_families(folder / "models")
    for family, (tensor, pipeline) in tiny_conversion.CONVERTED.items():
        convert_hf_to_megatron(
            str(folder / "models" / family), str(folder / "converted" / family), tensor, pipeline
        )
    output = run_ranks(
        Path(__file__).with_name("ranks_conversion.py"),
        2,
        folder / "models",
        folder / "converted",
        folder / "written",
    )
    line = next(line for line in output.splitlines() if line.startswith("RESULT "))
    (folder / "found.json").write_text(line.removeprefix("RESULT "))
    return folder


@pytest.mark.parametrize("case", CASES)
def test_conversion_gives_ranks_of_any_layout_the_same_bits(work: Path, case: str) -> None:
    found: dict[str, Any] = json.loads((work / "found.json").read_text())
    assert found[case] == [[], []]


@pytest.mark.parametrize("layout", ["tp2", "pp2"])
def test_conversion_of_a_run_gives_weights_and_model_files(work: Path, layout: str) -> None:
    step = work / "written" / "run" / layout / "checkpoints" / "step_000012"
    (step / "hf").mkdir(exist_ok=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(work / "models" / "qwen2" / name, step / "hf" / name)
    back = work / "back" / f"run {layout}"
    report = convert_megatron_to_hf(str(step), str(back))
    original = tiny_conversion.tensors(work / "models" / "qwen2")
    want = {name: tensor * 1.5 for name, tensor in original.items()}
    assert tiny_conversion.differing(tiny_conversion.tensors(back), want) == []
    assert report.unexpected == ()
    assert (back / "tokenizer.json").is_file()
