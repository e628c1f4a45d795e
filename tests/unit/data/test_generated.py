"""Questions that a recipe has generated in place of reading them from files."""

from __future__ import annotations

from typing import Any

import pytest
from task_library import needs_reasoning_gym
from unit.data.test_data_tokenize import build_tokenizer
from unit.data.test_templates import CHATML

from megatron_resrl.config.problems import RecipeError
from megatron_resrl.config.schema import DataConfig, EvaluationConfig, RewardConfig
from megatron_resrl.data.digest import digest
from megatron_resrl.data.generated import (
    HELD_OUT_SEED,
    HELD_OUT_SIZE,
    require_training_questions,
    training_questions,
)
from megatron_resrl.data.prompts import Prompt, load_prompts
from megatron_resrl.evaluation.run import load_evaluation_sets
from megatron_resrl.evaluation.sets import SetSettings, resolve_sets
from megatron_resrl.generators.exact_json import from_json
from megatron_resrl.generators.generator import Generator

SUMS = "reasoning_gym:chain_sum"
EASY = {"max_terms": 3}


def data(**changes: Any) -> DataConfig:
    return DataConfig(**({"generator": SUMS, "generator_options": EASY} | changes))


def made(settings: DataConfig, seed: int = 5) -> Generator:
    """The generator of a recipe, also where its library is missing."""
    (file,), _ = training_questions(settings, seed)
    assert file.generator is not None
    return file.generator


def held_out(entry: dict[str, Any], settings: DataConfig) -> tuple[list[SetSettings], list[str]]:
    evaluation = EvaluationConfig(files=(entry,))
    sets, problems = resolve_sets(evaluation, settings, RewardConfig(), 64)
    return sets, [str(each) for each in problems if each.kind != "machine"]


@pytest.mark.setting("data.generator")
@pytest.mark.setting("data.generator_options")
@pytest.mark.setting("data.generator_size")
@pytest.mark.setting("data.generator_seed")
def test_generator_is_what_the_settings_say() -> None:
    own = made(data(generator_size=30, generator_seed=9))
    assert (own.address, from_json(own.options), own.size, own.seed) == (SUMS, EASY, 30, 9)
    assert made(data(), seed=5).seed == 5
    assert made(data(generator_seed=0), seed=5).seed == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train_files": ("a.jsonl",)}, "data.generator = .*train_files names questions, too; gi"),
        ({"generator": None}, "data.generator_options = .* there is no data.generator; name one"),
        ({"generator": None, "generator_options": {}, "generator_size": 3}, "generator_size = 3"),
        ({"generator": None, "generator_options": {}, "generator_seed": 3}, "generator_seed = 3"),
        ({"generator_options": {"a": object()}}, "an option: object has no JSON"),
    ],
)
def test_generator_is_in_place_of_files(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        require_training_questions(data(**settings), 0)


@needs_reasoning_gym
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"generator": "reasoning_gym:chain_sums"}, "data.generator.*did you mean chain_sum"),
        ({"generator_options": {"max_term": 3}}, "generator_options = .*did you mean max_terms"),
        ({"generator_options": {"max_terms": 1}}, "generator_options = .*AssertionError"),
    ],
)
def test_generator_and_options_are_checked(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        require_training_questions(data(**settings), 0)


@pytest.mark.setting("evaluation.files")
def test_held_out_entry_is_the_training_generator_elsewhere() -> None:
    sets, problems = held_out({"generator": SUMS}, data(system_prompt="Be brief."))
    (found,) = sets
    own = found.file.generator
    assert own is not None
    assert not problems
    assert (own.address, from_json(own.options)) == (SUMS, EASY)
    assert (own.size, own.seed) == (HELD_OUT_SIZE, HELD_OUT_SEED)
    assert (found.name, found.file.system_prompt) == ("chain_sum", "Be brief.")
    assert not own.shares_questions(made(data()))


def test_held_out_entry_says_what_it_wants_otherwise() -> None:
    entry = {"generator": SUMS, "options": {"min_terms": 4}, "size": 7, "seed": 8, "name": "long"}
    entry |= {"samples_per_prompt": 2, "reward": "integer", "prompt_template": "Q: {question}"}
    ((found,), problems) = held_out(entry, data())
    own = found.file.generator
    assert own is not None
    assert not problems
    assert (from_json(own.options), own.size, own.seed) == ({"min_terms": 4}, 7, 8)
    assert (found.name, found.samples_per_prompt, found.reward.function) == ("long", 2, "integer")
    ((other,), _) = held_out({"generator": "reasoning_gym:gcd"}, data())
    assert other.file.generator is not None
    assert from_json(other.file.generator.options) == {}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"sed": 3}, "a generator has no key 'sed'; did you mean seed?"),
        ({"path": "a.jsonl"}, "a generator has no key 'path'"),
        ({"size": 0}, "size is 0; give an integer from 1"),
        ({"seed": "x"}, "seed is 'x'; give an integer from 0"),
        ({"options": [1]}, "its options are [1]; give a mapping like"),
        ({"name": 3}, "name is 3; give a text"),
        ({"generator": 3}, "generator is 3; give a text"),
        ({"prompt_template": "x"}, "its prompt_template has no place for the question"),
        ({"top_p": "x"}, "top_p is 'x'; give a number"),
    ],
)
def test_held_out_entry_refuses_what_it_does_not_have(entry: dict[str, Any], said: str) -> None:
    sets, problems = held_out({"generator": SUMS} | entry, data())
    assert not sets
    assert len(problems) == 1
    assert said in problems[0]


@needs_reasoning_gym
def test_generated_records_have_question_answer_and_metadata() -> None:
    from reasoning_gym import create_dataset

    (file,) = require_training_questions(data(generator_size=4, system_prompt="Be brief."), 5)
    records = load_prompts(file)
    expected = list(create_dataset("chain_sum", seed=5, size=4, **EASY))
    users = [{"role": "user", "content": each["question"]} for each in expected]
    assert [r.messages for r in records] == [
        [{"role": "system", "content": "Be brief."}, user] for user in users
    ]
    assert [r.ground_truth for r in records] == [each["answer"] for each in expected]
    assert [from_json(r.extra["metadata"]) for r in records] == [e["metadata"] for e in expected]
    assert {r.data_source for r in records} == {SUMS}
    assert str(records[3]) == f"{SUMS}, row 3"
    again = load_prompts(file, limit=3)
    assert again == records[:3]
    first, second = (digest([Prompt(r, (3,)) for r in each[:3]]) for each in (records, again))
    assert first == second
    assert digest([Prompt(r, (3,)) for r in records[1:]]) != first


@needs_reasoning_gym
def test_rows_without_an_answer_are_kept() -> None:
    settings = data(generator="reasoning_gym:graph_color", generator_options={}, generator_size=3)
    (file,) = require_training_questions(settings, 0)
    assert [record.ground_truth for record in load_prompts(file)] == [None] * 3


@needs_reasoning_gym
def test_held_out_set_counts_its_rows() -> None:
    ((settings,), _) = held_out({"generator": SUMS, "size": 6, "max_prompts": 4}, data())
    ((found),) = load_evaluation_sets([settings], DataConfig(), build_tokenizer(CHATML))
    assert (len(found.prompts), found.dropped) == (4, ())
