"""What is allowed and probably not meant is said, and nothing is refused for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_resrl.checks.facts import Facts
from megatron_resrl.checks.notes import NOTES, RUN_NOTES
from megatron_resrl.checks.recipe import inspect_recipe
from megatron_resrl.config.load import load_recipe
from megatron_resrl.config.schema import Recipe

QUIET = ("--steps=20", "--checkpoint.save_every=10")


def notes(*overrides: str) -> list[str]:
    recipe = load_recipe(None, [*QUIET, *overrides])
    return [f.setting for note in (*RUN_NOTES, *NOTES) for f in note(Facts(recipe, 1, {}))]


def test_notes_are_none_for_a_usual_recipe() -> None:
    assert notes() == []


@pytest.mark.parametrize(
    ("overrides", "setting"),
    [
        (("--optimizer.lr_warmup_steps=21",), "optimizer.lr_warmup_steps"),
        (("--optimizer.lr=10",), "optimizer.lr"),
        (("--evaluation.every=5",), "evaluation.every"),
        (("--evaluation.every=50", "--evaluation.files=[a.jsonl]"), "evaluation.every"),
        (("--checkpoint.save_every=0",), "checkpoint.save_every"),
        (("--checkpoint.save_every=20",), "checkpoint.save_every"),
        (("--rollout.temperature=3",), "rollout.temperature"),
        (
            ("--evaluation.files=[a.jsonl]", "--evaluation.temperature=0"),
            "evaluation.samples_per_prompt",
        ),
    ],
)
def test_notes_name_what_is_probably_not_meant(overrides: tuple[str, ...], setting: str) -> None:
    assert notes(*overrides) == [setting]


def test_notes_name_a_service_without_a_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(file))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    asked = "--logging.wandb_project=p"
    assert notes(asked) == ["logging.wandb_project"]
    assert notes() == []
    for name, value in (("WANDB_API_KEY", "k"), ("WANDB_MODE", "offline")):
        with monkeypatch.context() as here:
            here.setenv(name, value)
            assert notes(asked) == []
    file.write_text("machine api.wandb.ai login user password k\n")
    file.chmod(0o600)
    assert notes(asked) == []


def test_notes_count_the_warm_up_in_optimizer_steps() -> None:
    assert notes("--optimizer.lr_warmup_steps=40", "--algorithm.updates_per_step=2") == []


def test_notes_are_no_problems() -> None:
    found = [each for each in inspect_recipe(Recipe(steps=2), 1) if each.kind == "note"]
    assert [each.setting for each in found] == ["optimizer.lr_warmup_steps"]
    assert "ends at 20% of optimizer.lr" in found[0].problem


def test_notes_name_the_attention_of_fp32_on_cuda() -> None:
    for target, params_dtype, noted in (
        ("cuda", "fp32", ["precision.params_dtype"]),
        ("cuda", "bf16", []),
    ):
        recipe = load_recipe(None, [f"--precision.params_dtype={params_dtype}"])
        found = [each for each in inspect_recipe(recipe, 1, target=target) if each.kind == "note"]
        attention = [each.setting for each in found if "attention" in each.problem]
        assert attention == noted
