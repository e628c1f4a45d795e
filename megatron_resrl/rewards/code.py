"""Programs, run in a sandbox and judged outside of it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from megatron_resrl.config.schema_questions import CodeConfig
from megatron_resrl.rewards.code_block import last_program
from megatron_resrl.rewards.code_results import same_output, same_value
from megatron_resrl.rewards.code_tests import CalledTests, PrintedTests, Tests, read_tests
from megatron_resrl.sandbox.backends import make_runner
from megatron_resrl.sandbox.local import LocalRunner
from megatron_resrl.sandbox.runners import Exam, Runner, Unusable


def code_reward(
    response: str,
    ground_truth: Any,
    *,
    prompt: str = "",
    data_source: str = "",
    extra: Any = None,
    partial_credit: bool = False,
    settings: CodeConfig | None = None,
) -> float:
    """1 if the last code block of the response passes all tests, otherwise 0.

    The program never meets the tests: its output and results are compared in this process, and
    asserts run in another sandbox than the program.

    Args:
        response: Text with a fenced code block.
        ground_truth: Tests, see `code_tests.read_tests`.
        prompt: Not used.
        data_source: Not used.
        extra: Not used.
        partial_credit: Return the share of tests that are passed.
        settings: Of the sandbox; the first call with them starts it. None: the defaults.

    Raises:
        ValueError: The tests cannot be run.
        SettingError: There is no sandbox.
    """
    tests = read_tests(ground_truth)
    program = last_program(response)
    if program is None:
        return 0.0
    try:
        passed = list(_passed(_runner(settings or CodeConfig()), program, tests, partial_credit))
    except Unusable as error:
        raise ValueError(f"the tests cannot be run: {error}") from error
    return sum(passed) / len(passed) if partial_credit else float(all(passed))


def check_ground_truth(value: Any) -> None:
    """Refuses what holds no tests that could be run.

    Raises:
        ValueError: With what is wrong and what would be right.
    """
    read_tests(value)


def prepare(settings: CodeConfig | None) -> None:
    """Starts the sandbox of this process.

    Args:
        settings: Of the sandbox; None: the defaults.

    Raises:
        SettingError: There is none.
    """
    runner = _runner(settings or CodeConfig())
    if isinstance(runner, LocalRunner):
        runner.run("", "")


def _passed(runner: Runner, program: str, tests: Tests, every: bool) -> Iterator[bool]:
    """Which tests a program passes, up to the first that it does not unless `every` is wanted."""
    if isinstance(tests, Exam):
        yield from runner.examine(program, tests, every=every)
        return
    if isinstance(tests, PrintedTests):
        found = _printed(runner, program, tests)
    else:
        found = _called(runner, program, tests)
    for each in found:
        yield each
        if not each and not every:
            return


def _printed(runner: Runner, program: str, tests: PrintedTests) -> Iterator[bool]:
    for given, expected in zip(tests.inputs, tests.outputs, strict=True):
        ran = runner.run(program, given)
        yield ran.code == 0 and same_output(ran.output.decode(errors="replace"), expected)


def _called(runner: Runner, program: str, tests: CalledTests) -> Iterator[bool]:
    results = runner.call(program, tests.function, tests.inputs)
    for result, expected in zip(results, tests.outputs, strict=True):
        yield same_value(result, expected)


@functools.cache
def _runner(settings: CodeConfig) -> Runner:
    """One for each process and its settings, kept until the process ends."""
    return make_runner(settings)
