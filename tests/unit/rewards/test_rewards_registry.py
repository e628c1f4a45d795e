"""Finding reward functions."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_resrl.errors import InputError
from megatron_resrl.rewards.integer import integer_reward
from megatron_resrl.rewards.math import math_reward
from megatron_resrl.rewards.registry import absolute_name, get_reward, load_reward

CONTENT = """\
from __future__ import annotations
from dataclasses import dataclass
import functools

@dataclass
class Scorer:
    gain: float

    def __call__(self, response, ground_truth, *, prompt, data_source, extra):
        return self.gain * (response == ground_truth)

double = Scorer(2.0)
number = 3

def exact(response, ground_truth, **context):
    return float(response == ground_truth)

def two_arguments(response, ground_truth):
    return 1.0

def other_names(solution_str, ground_truth, extra_info=None, **context):
    return 1.0

def needs_more(response, ground_truth, tokenizer, **context):
    return 1.0

def judged(response, ground_truth, *, strictness=1.0, prompt, data_source, extra):
    return strictness
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text(CONTENT)
    return file


def test_load_reward_finds_built_in_functions() -> None:
    assert get_reward("math") is math_reward
    assert get_reward("integer") is integer_reward


def test_load_reward_finds_a_function_by_file_and_name(file: Path) -> None:
    reward = get_reward(f"{file}:exact")
    assert reward("4", "4", prompt="", data_source="", extra={}) == 1.0
    assert reward("5", "4", prompt="", data_source="", extra={}) == 0.0


def test_load_reward_takes_any_callable(file: Path) -> None:
    assert get_reward(f"{file}:double")("4", "4", prompt="", data_source="", extra={}) == 2.0


def test_load_reward_allows_other_positional_names(file: Path) -> None:
    assert get_reward(f"{file}:other_names")("4", "4", prompt="", data_source="", extra={}) == 1.0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("maths", "there is no such reward function (did you mean 'math'?)"),
        ("", "there is no such reward function; give math, integer, "),
        ("{file}", "there is no such reward function; give math, integer, "),
        ("{file}:", "there is no such reward function; give math, integer, "),
        (
            "{file}x.py:exact",
            "there is no file {file}x.py; give math, integer, ",
        ),
        ("{file}:exakt", "{file} has no function 'exakt'; its functions are exact, judged, "),
        (
            "{file}:number",
            "it is of type int, not a function; give one like f(response, ground_truth",
        ),
        ("{file}:two_arguments", "unexpected keyword argument 'prompt'); unused arguments can"),
        ("{file}:needs_more", "missing a required argument: 'tokenizer'"),
    ],
)
def test_load_reward_names_what_cannot_be_used_and_a_remedy(
    file: Path, name: str, said: str
) -> None:
    name = name.format(file=file)
    with pytest.raises(InputError) as caught:
        get_reward(name)
    assert str(caught.value).startswith(f"reward.function = {name!r}: ")
    assert said.format(file=file) in str(caught.value)


def test_load_reward_shows_the_error_of_a_file_that_fails(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("import math\nmath.no_such_function\ndef score(): pass\n")
    with pytest.raises(InputError, match=r"cannot be run \(AttributeError: .*no_such_function"):
        get_reward(f"{file}:score")


def test_reward_name_is_made_independent_of_the_directory(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    assert absolute_name("mine.py:exact") == f"{file.resolve()}:exact"
    assert absolute_name("math") == "math"


def test_options_reach_the_function_and_others_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "reward.py"
    file.write_text(CONTENT)
    judged = load_reward(f"{file}:judged", {"strictness": 0.25}).function
    assert judged("", "", prompt="", data_source="", extra={}) == 0.25
    with pytest.raises(InputError, match=r"no option 'strictnes'.*did you mean strictness"):
        load_reward(f"{file}:judged", {"strictnes": 0.25})
    # What every function is given is no option.
    with pytest.raises(InputError, match=r"no option 'prompt'.*its own are strictness"):
        load_reward(f"{file}:judged", {"prompt": ""})
