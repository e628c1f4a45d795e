"""The puzzles of the three-stage example, their verifier, files, recipes and table."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_resrl.rewards.registry import load_reward
from megatron_resrl.user_files import run_file

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "examples/pretrain_to_rl"
prepare = run_file(FOLDER / "prepare.py", "example")
reward = load_reward(f"{FOLDER / 'verifier.py'}:score")
LEVELS = prepare.LEVELS
SEEDS = st.integers(0, 2**32 - 1)
LEVEL = st.sampled_from(LEVELS)


def score(response: str, numbers: list[int], target: int) -> float:
    ground_truth = {"numbers": numbers, "target": target}
    return reward.function(response, ground_truth, prompt="", data_source="heldout", extra={})


def made(seed: int, level) -> tuple[str, list[int], int]:
    puzzle = prepare.make_puzzle(random.Random(seed), level)
    return puzzle.solution, list(puzzle.numbers), puzzle.target


@given(SEEDS, LEVEL)
def test_puzzle_solution_passes_the_verifier(seed, level):
    solution, numbers, target = made(seed, level)
    assert score(solution, numbers, target) == 1
    assert len(numbers) == level.count
    assert all(1 <= number <= level.highest for number in numbers)
    assert target not in numbers


@given(SEEDS, LEVEL, st.integers(0, prepare.LARGEST))
def test_verifier_refuses_another_target(seed, level, other):
    solution, numbers, target = made(seed, level)
    assert score(solution, numbers, other) == (other == target)


@given(SEEDS, LEVEL, st.data())
def test_verifier_refuses_one_wrong_digit(seed, level, data):
    """Of a result or of an operand: the step no longer holds, or its numbers are not given."""
    solution, numbers, target = made(seed, level)
    places = [place for place, each in enumerate(solution) if each.isdigit()]
    place = data.draw(st.sampled_from(places))
    digit = data.draw(st.sampled_from(sorted(set("0123456789") - {solution[place]})))
    changed = solution[:place] + digit + solution[place + 1 :]
    assert score(changed, numbers, target) == 0


@given(SEEDS, LEVEL, st.data())
def test_verifier_refuses_a_number_that_is_not_given(seed, level, data):
    """The solution uses all numbers, so that it needs each of them."""
    solution, numbers, target = made(seed, level)
    numbers.remove(data.draw(st.sampled_from(numbers)))
    assert score(solution, numbers, target) == 0


@given(SEEDS, LEVEL)
def test_verifier_takes_numbers_in_any_order(seed, level):
    solution, numbers, target = made(seed, level)
    assert score(solution.replace("; ", ";"), sorted(numbers), target) == 1
    assert score(f" {solution}\n", numbers[::-1], target) == 1


@given(st.text())
def test_verifier_refuses_other_text(text):
    assert score(text, [3, 7, 4], 17) == 0


@pytest.mark.parametrize(
    ("response", "right"),
    [
        ("3*7=21; 21-4=17", 1),
        ("7*3=21; 21-4=17", 1),
        ("3*7=21; 21-4=17;", 0),
        ("3*7=21", 0),  # another target
        ("3*7=21; 21-4=17; 17+4=21", 0),  # goes on behind the target
        ("3*7=21; 7*3=21; 21-4=17", 0),  # numbers used twice
        ("3*7=21; 3+7=10; 21-4=17", 0),
        ("21-4=17", 0),  # a number that nobody has made yet
        ("3*7=22; 22-5=17", 0),
        ("13+4=17", 0),
        ("3*7=21 21-4=17", 0),
        ("3 * 7 = 21; 21 - 4 = 17", 0),
        ("4-7=-3; -3+20=17", 0),
        ("3*7=21; 21-4=17 is the answer", 0),
        ("3*7=21; 21-4=1" + "7" * 100_000, 0),
        ("9" * 100_000 + "*7=21; 21-4=17", 0),
        ("\u0663*7=21; 21-4=17", 0),  # a digit that is not ASCII
        ("7/1=7; 21-4=17", 0),  # another operation
        (";" * 100_000, 0),
        ("", 0),
    ],
)
def test_verifier_judges(response, right):
    assert score(response, [3, 7, 4], 17) == right


@pytest.mark.parametrize("value", ["17", {"target": 17}, {"numbers": ["3"], "target": 17}, None])
def test_verifier_refuses_ground_truths_by_their_form(value):
    reward.check({"numbers": [3, 7, 4], "target": 17})
    with pytest.raises(ValueError, match="is not of the form"):
        reward.check(value)


@given(SEEDS, LEVEL)
def test_puzzle_is_held_out_whatever_its_order_or_solution(seed, level):
    puzzle = prepare.make_puzzle(random.Random(seed), level)
    for numbers in itertools.permutations(puzzle.numbers):
        assert prepare.Puzzle(numbers, puzzle.target, "").held_out == puzzle.held_out


@given(SEEDS)
def test_facts_are_right(seed):
    left, _, result = prepare.fact(random.Random(seed)).partition("=")
    assert eval(left) == int(result) <= prepare.LARGEST


def write_files(monkeypatch, folder: Path, *options: str) -> Path:
    sizes = ("--documents", "2000", "--conversations", "200", "--questions", "200")
    arguments = ["--directory", str(folder), *sizes, "--held_out", "60", *options]
    monkeypatch.setattr("sys.argv", ["prepare.py", *arguments])
    prepare.main()
    return folder


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.open()]


def test_prepare_holds_puzzles_out_of_all_other_files(tmp_path, monkeypatch):
    folder = write_files(monkeypatch, tmp_path)
    held_out = {
        (tuple(sorted(row["answer"]["numbers"])), row["answer"]["target"])
        for row in rows(folder / "heldout.jsonl")
    }
    assert len(held_out) == 60
    learned = {
        (tuple(sorted(row["answer"]["numbers"])), row["answer"]["target"])
        for row in rows(folder / "train.jsonl")
    }
    for row in rows(folder / "conversations.jsonl"):
        learned.add(numbers_and_target(row["messages"][0]["content"]))
    for row in rows(folder / "corpus.jsonl"):
        if "from" in row["text"]:
            learned.add(numbers_and_target(row["text"].split(":")[0].split(".")[0]))
    assert len(learned) > 1000
    assert not learned & held_out


def numbers_and_target(question: str) -> tuple[tuple[int, ...], int]:
    """Of `17 from 3,7,4` and of `Make 17 from 3, 7 and 4.`"""
    words = question.removeprefix("Make ").rstrip(".").replace(",", " ").replace("and", " ").split()
    target, _, *numbers = words
    return tuple(sorted(map(int, numbers))), int(target)


def test_prepare_writes_solutions_that_the_verifier_accepts(tmp_path, monkeypatch):
    folder = write_files(monkeypatch, tmp_path)
    for name in ("conversations", "heldout_conversations"):
        for row in rows(folder / f"{name}.jsonl"):
            question, answer = (message["content"] for message in row["messages"])
            assert score(answer, *numbers_and_target(question)) == 1
    for row in rows(folder / "train.jsonl") + rows(folder / "heldout.jsonl"):
        reward.check(row["answer"])
        expected = tuple(sorted(row["answer"]["numbers"])), row["answer"]["target"]
        assert numbers_and_target(row["prompt"]) == expected
        assert numbers_and_target(row["text"].rstrip(":")) == expected


def test_prepare_files_depend_on_the_seed_alone(tmp_path, monkeypatch):
    for name, seed in (("one", "3"), ("same", "3"), ("other", "4")):
        write_files(monkeypatch, tmp_path / name, "--seed", seed)
    for file in (tmp_path / "one").iterdir():
        one, same, other = (
            (tmp_path / n / file.name).read_bytes() for n in ("one", "same", "other")
        )
        assert one == same != other


def test_prepare_mixes_levels_in_the_evaluation(tmp_path, monkeypatch):
    folder = write_files(monkeypatch, tmp_path)
    counts = Counter(len(row["answer"]["numbers"]) for row in rows(folder / "heldout.jsonl"))
    # Puzzles that have come before are left out, so that few levels have exactly a quarter.
    assert counts[2] > 10
    assert counts[3] > 25
    assert counts[4] > 10
