"""What the checks say of generated questions, before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from task_library import needs_reasoning_gym

from megatron_resrl.config.problems import Problem

SUMS = ("--data.train_files=[]", "--data.generator=reasoning_gym:chain_sum")
HELD_OUT = "--evaluation.files=[{generator: reasoning_gym:chain_sum, seed: 990, size: 20}]"
REWARD = "--reward.function=reasoning_gym"


def test_generator_beside_files_is_refused(check: Callable[..., list[Problem]]) -> None:
    lines = [str(each) for each in check("--data.generator=reasoning_gym:chain_sum")]
    assert any("data.train_files names questions, too; give one of both" in each for each in lines)


@needs_reasoning_gym
def test_generator_is_checked_with_its_first_rows(check: Callable[..., list[Problem]]) -> None:
    # The tiny tokenizer knows numbers to 63; every other word is one token.
    assert not check(*SUMS, REWARD, "--data.max_prompt_length=64")
    (problem,) = check(*SUMS, REWARD, "--data.generator=reasoning_gym:chain_sun")
    assert (problem.setting, problem.fix) == ("data.generator", "did you mean chain_sum?")
    (problem,) = check(*SUMS, REWARD, "--data.generator_options.max_term=3")
    assert (problem.setting, problem.fix) == ("data.generator_options", "did you mean max_terms?")


@needs_reasoning_gym
def test_held_out_questions_of_the_training_are_refused(
    check: Callable[..., list[Problem]],
) -> None:
    given = (*SUMS, REWARD, HELD_OUT, "--data.max_prompt_length=64")
    (problem,) = check(*given)
    assert problem.setting == "evaluation.files"
    assert "it asks questions of the training" in problem.problem
    assert "trains from 0 to 999" in problem.problem
    assert not check(*given, "--data.generator_size=990")


@needs_reasoning_gym
def test_rows_of_no_task_are_refused(check: Callable[..., list[Problem]], tmp_path: Path) -> None:
    file = tmp_path / "plain.jsonl"
    file.write_text('{"prompt": "3", "answer": "3"}\n' * 2)
    (problem,) = check(f"--data.train_files=[{file}]", REWARD)
    assert (problem.setting, problem.value) == ("data.train_files", str(file))
    assert f"cannot use 2 of the first 2 rows, the first is {file}, line 1" in problem.problem
    assert "take questions of data.generator" in problem.fix
