"""Which changes make another run of one that is continued."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from tiny_recipe import write_model

from megatron_resrl.config.load import recipe_yaml
from megatron_resrl.config.recipe_schema import schema_of
from megatron_resrl.config.schema import Recipe
from megatron_resrl.config.stages import STAGES
from megatron_resrl.platform.places import Place
from megatron_resrl.training.identity import (
    HARMLESS,
    Changes,
    Identity,
    changes,
    flat_settings,
    rank_differences,
)
from megatron_resrl.training.questions import Questions, rl_identity

CONTENTS = {"model: weights": "a", "data: questions": "16, digest b", "evaluation: c": "d"}
DEFAULT = Recipe()


def recipe(**settings: Any) -> Recipe:
    """The default recipe with dotted settings, spelled with "__"."""
    changed = DEFAULT
    for name, value in settings.items():
        section, _, field = name.partition("__")
        if field:
            value = dataclasses.replace(getattr(changed, section), **{field: value})
        changed = dataclasses.replace(changed, **{section: value})
    return changed


def compare(
    saved: Recipe | str, own: Recipe, *, before: Any = None, now: Any = None, unused: Any = ()
) -> Changes:
    text = saved if isinstance(saved, str) else recipe_yaml(saved)
    identity = Identity(flat_settings(recipe_yaml(own), own), CONTENTS | (now or {}), unused)
    saved = CONTENTS | before if before is not None else CONTENTS
    return changes(text, saved, identity, DEFAULT)


def test_identity_of_the_same_run_has_no_changes():
    assert compare(DEFAULT, DEFAULT) == Changes([], [], False)


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 7},
        {"output_dir": "elsewhere"},
        {"parallel__tensor_model_parallel_size": 2},
        {"optimizer__lr_decay_steps": 9},
        {"checkpoint__save_every": 3},
        {"rollout__engine": "vllm"},
        {"correction__stop_kl": 1.0},
        {"algorithm__micro_batch_size": 1},
        {"teacher__url": "http://elsewhere/v1"},
        {"teacher__path": "moved"},
        {"model__path": "moved"},  # What lies there is compared.
        {"data__train_files": ("moved.jsonl",)},
        {"data__max_prompt_length": 9},
    ],
)
def test_identity_only_lists_what_leaves_the_objective(settings):
    found = compare(DEFAULT, recipe(**settings))
    assert not found.meaning
    assert len(found.harmless) == (0 if "path" in str(settings) or "files" in str(settings) else 1)


@pytest.mark.parametrize(
    "settings",
    [
        {"algorithm__name": "grpo"},
        {"algorithm__clip_high": 0.3},
        {"algorithm__kl_coefficient": 0.1},
        {"teacher__model": "larger"},
        {"resrl__rank": 9},
        {"reward__length_scaling": True},
        {"correction__method": "icepop"},
        {"rollout__group_size": 8},
        {"rollout__temperature": 0.9},
        {"model__hidden_dropout": 0.1},
        {"seed": 1},
        {"data__shuffle": False},
    ],
)
def test_identity_names_changes_of_the_objective(settings):
    ((name, value),) = settings.items()
    found = compare(DEFAULT, recipe(**settings))
    (line,) = found.meaning
    before = flat_settings(recipe_yaml(DEFAULT), DEFAULT)[name.replace("__", ".")]
    assert line == f"{name.replace('__', '.')}: {before!r} in the checkpoint, {value!r} now"
    assert found.data == (name in ("seed", "data__shuffle"))


def test_identity_ignores_resrl_of_other_algorithms():
    grpo = {"algorithm__name": "grpo"}
    found = compare(recipe(**grpo), recipe(**grpo, resrl__rank=9), unused=("resrl.",))
    assert not found.meaning
    assert len(found.harmless) == 1


def test_contents_count_wherever_they_lie():
    found = compare(DEFAULT, DEFAULT, now={"data: questions": "17, digest e"})
    assert found.meaning == ["data: questions: 16, digest b in the checkpoint, 17, digest e now"]
    assert found.data
    assert not compare(DEFAULT, DEFAULT, now={"evaluation: c": "e"}).meaning


def test_rl_identity_knows_the_file_of_a_token_weighting(tmp_path):
    model, file = write_model(tmp_path / "model"), tmp_path / "mine.py"
    file.write_text("class Mine:\n    pass\n")
    own = recipe(model__path=str(model), resrl__weights=f"{file}:Mine")
    questions = Questions(None, [], [])
    before = rl_identity(own, questions)
    file.write_text("class Mine:\n    changed = True\n")
    after = rl_identity(own, questions)
    (line,) = changes(recipe_yaml(own), before.contents, after, DEFAULT).meaning
    assert line.startswith("token weighting: class: Mine of mine.py, digest ")
    assert rank_differences([(Place(0, "one", 0), before), (Place(1, "two", 0), after)])
    assert before.digest() != after.digest()
    # An algorithm that uses no weights does not depend on the file.
    grpo = dataclasses.replace(own, algorithm=dataclasses.replace(own.algorithm, name="grpo"))
    assert "token weighting: class" not in rl_identity(grpo, questions).contents


def test_identity_of_an_older_checkpoint_lacks_new_settings():
    own = Identity(flat_settings(recipe_yaml(recipe(steps=7)), DEFAULT), CONTENTS)
    assert changes("", None, own, DEFAULT) == Changes([], [], False)
    assert len(changes("steps: 5\nseed: 0\n", None, own, DEFAULT).harmless) == 1
    assert len(changes("steps: 5\nseed: 1\n", None, own, DEFAULT).meaning) == 1


def test_changes_ignore_settings_that_are_gone():
    saved = recipe_yaml(DEFAULT).replace("resrl:\n", "resrl:\n  split_groups: true\n")
    assert "split_groups" in saved
    assert compare(saved, DEFAULT) == Changes([], [], False)


def test_identity_names_harmless_settings_that_exist():
    names = {name for kind in STAGES.values() for name in schema_of(kind).settings}
    for each in HARMLESS:
        assert each in names or any(name.startswith(each) for name in names), each


def test_ranks_are_named_with_their_hosts():
    place, other = Place(0, "one", 0), Place(2, "two", 0, "3")
    first = Identity({"seed": 1, "model.path": "/a"}, {"data: questions": "16"})
    second = Identity({"seed": 2, "model.path": "/b"}, {"data: questions": "17"})
    assert rank_differences([(place, first), (Place(1, "one", 1), first), (other, second)]) == [
        f"seed is 2 on {other}, 1 on {place}",
        f"data: questions is '17' on {other}, '16' on {place}",
    ]
    assert rank_differences([(place, first)] + [(other, second)] * 20)[-1] == "and 32 more"
