"""`megatron-resrl plan` with dry runs, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from planned_models import llama_config, write_config

from megatron_resrl.cli import main
from megatron_resrl.planning.records import RankRecord


def tiny_recipe(tmp_path: Path) -> Path:
    config = llama_config(
        hidden_size=64, num_hidden_layers=4, intermediate_size=96, num_attention_heads=8
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {{path: {write_config(tmp_path / 'model', config)}}}\n"
        "data: {max_prompt_length: 16}\n"
        "rollout: {prompts_per_step: 8, group_size: 4, max_response_length: 48}\n"
        "algorithm: {micro_batch_size: 2}\n"
        "resrl: {rank: 4, max_positive_tokens: 16}\n"
        "parallel: {tensor_model_parallel_size: 2, pipeline_model_parallel_size: 2}\n"
    )
    return recipe


@pytest.mark.slow
def test_search_dry_runs_the_fastest(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = tiny_recipe(tmp_path)
    options = ("--gpus_per_node", "2", "--dry_runs", "1", "--json")
    assert main(["plan", str(recipe), "--search", *options]) == 0
    said = capfd.readouterr().out
    found = json.loads(said[said.index("[\n") :])
    assert [each["found_by"] for each in found[:2]] == ["dry run", "formula"]
    # A dry run knows what formulas leave out.
    assert {"subspace", "generation"} <= set(found[0]["parts"])


def test_plan_dry_runs_every_stage(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = tiny_recipe(tmp_path)
    status = main(["plan", str(recipe), "--gpus_per_node", "8", "--json"])
    said = capfd.readouterr().out
    found = json.loads(said[said.index("{") :])
    assert status == 0
    assert found["fits"] is True
    first, last = (RankRecord.from_json(rank) for rank in found["ranks"])
    assert first.role == "first stage"
    assert last.role == "last stage, owner of the subspace"
    names = {phase.name for phase in last.phases}
    assert {"build", "scoring", "subspace", "update", "weight_export", "checkpoint"} <= names
    update = next(phase for phase in first.phases if phase.name == "update")
    assert {"tensor", "pipeline", "data"} <= {traffic.group for traffic in update.traffic}
    assert update.waits
    assert update.peak_bytes > update.start_bytes > 0
    parts = found["seconds"]["parts"]
    assert next(iter(parts)) == "generation"
    assert {"scoring", "subspace", "update"} <= set(parts)
    assert found["seconds"]["step"] == pytest.approx(sum(parts.values()))
