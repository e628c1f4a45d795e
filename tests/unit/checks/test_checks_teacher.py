"""A distillation without a teacher, or with one that does not fit, is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

DISTILLATION = "--algorithm.name=distillation"


@pytest.fixture
def twin(model: Path, tmp_path: Path) -> Path:
    """A copy of the policy's model."""
    return shutil.copytree(model, tmp_path / "twin")


def test_distillation_needs_one_teacher(check, refused, twin):
    assert refused(DISTILLATION).setting == "teacher.path"
    path, url = f"--teacher.path={twin}", "--teacher.url=http://localhost:1/v1"
    assert "path and url" in refused(DISTILLATION, path, url).problem
    assert check(DISTILLATION, path) == []
    assert check(DISTILLATION, url) == []


@pytest.mark.parametrize("teacher", ["--teacher.path=/nowhere", "--teacher.url=http://a"])
def test_teacher_that_the_algorithm_does_not_use_is_refused(check, teacher):
    problems = check("--algorithm.name=grpo", teacher)
    setting = teacher.removeprefix("--").partition("=")[0]
    assert any(
        each.setting == setting and "grpo has no teacher" in each.problem for each in problems
    )


def test_teacher_on_a_server_needs_an_address_and_temperature_1(check, refused, twin):
    problem = refused(DISTILLATION, "--teacher.url=localhost:8000")
    assert (problem.setting, problem.value) == ("teacher.url", "localhost:8000")
    warm = "--rollout.temperature=0.7"
    assert refused(DISTILLATION, "--teacher.url=http://a", warm).setting == "rollout.temperature"
    assert check(DISTILLATION, f"--teacher.path={twin}", warm) == []


def test_teacher_of_another_form_is_refused_with_what_differs(check, refused, twin):
    path = f"--teacher.path={twin}"
    config = json.loads((twin / "config.json").read_text())
    changed = config | {"rms_norm_eps": 0.5, "transformers_version": "0", "use_cache": False}
    (twin / "config.json").write_text(json.dumps(changed))
    problem = refused(DISTILLATION, path)
    assert problem.setting == "teacher.path"
    assert problem.problem.startswith("its config.json has rms_norm_eps 0.5 where")
    (twin / "config.json").write_text(
        json.dumps(changed | {"rms_norm_eps": config["rms_norm_eps"]})
    )
    assert check(DISTILLATION, path) == []
    (twin / "config.json").unlink()
    assert "no config.json" in refused(DISTILLATION, path).problem
    assert refused(DISTILLATION, f"{path}/missing").problem == "there is no such directory"
