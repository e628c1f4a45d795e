"""A function's arguments as options of a command."""

from __future__ import annotations

import signal

import pytest

from megatron_resrl.config.function_command import run_function
from megatron_resrl.errors import UNUSABLE, InputError


def show(
    input: list[str],
    out_path: str,
    more: list[str] | None = None,
    count: int = 1,
    force: bool = False,
) -> str:
    """Says what it was given.

    Args:
        input: Some files.
        out_path: A path.
        more: Others.
        count: A number.
        force: A switch.
    """
    if count > 9:
        raise KeyboardInterrupt
    if count < 0:
        raise InputError(f"--count is {count}; it must be at least 0")
    return repr((input, out_path, more, count, force))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--input a b --out-path c", (["a", "b"], "c", None, 1, False)),
        ("--force --out_path=c --input a=1", (["a=1"], "c", None, 1, True)),
        ("--input a --force false --out-path c", (["a"], "c", None, 1, False)),
        (
            "--more x-y z --input 1 null --force --out-path=c",
            (["1", "null"], "c", ["x-y", "z"], 1, True),
        ),
        ("--input=[a]=b --out-path c --count 3", (["[a]=b"], "c", None, 3, False)),
    ],
)
def test_run_function_understands_options(
    capsys: pytest.CaptureFixture[str], line: str, expected: tuple[object, ...]
) -> None:
    assert run_function(show, line.split()) == 0
    assert capsys.readouterr().out.strip() == repr(expected)


def test_run_function_ends_with_the_error_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_function(show, ["--input", "a", "--out-path", "c", "--count=-1"]) == UNUSABLE
    assert capsys.readouterr() == ("", "--count is -1; it must be at least 0\n")
    assert (
        run_function(show, ["--input", "a", "--out-path", "c", "--count=10"]) == 128 + signal.SIGINT
    )
    assert capsys.readouterr() == ("", "interrupted\n")
    with pytest.raises(SystemExit) as ended:
        run_function(show, ["--input", "a", "--wrong"])
    assert ended.value.code == UNUSABLE
    assert "wrong" in capsys.readouterr().err
