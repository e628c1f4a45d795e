"""The interpreter runs programs in the sandbox, and says what they print and how they fail."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from sandboxes import require_any

from megatron_resrl.config.schema_questions import CodeConfig
from megatron_resrl.rollout.environments.python_tool import Python, PythonTool
from megatron_resrl.rollout.environments.registry import get_environment

QUICK = CodeConfig(timeout_s=1.0)


@pytest.fixture(autouse=True)
def _sandbox() -> None:
    require_any()


def run(program: str, **options: int) -> str:
    return PythonTool(code=QUICK, **options).run({"code": program})


def test_python_tool_answers_with_what_is_printed() -> None:
    call = json.dumps({"name": "python", "arguments": {"code": "print(6 * 7)\nprint('x')"}})
    observation = Python().step(f"I compute. <tool_call>{call}</tool_call>")
    assert observation.text == "42\nx"
    assert not observation.done


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("x = 1", "the program printed nothing"),
        ("print('a')\n1 / 0", "a\nerror: ZeroDivisionError: division by zero"),
        ("print(", "error: SyntaxError: '(' was never closed"),
        ("import sys; sys.exit(3)", "error: the program ended with status 3"),
        ("while True: pass", "error: the program took longer than 1 seconds"),
        ("import socket; socket.socket()", "error: PermissionError"),
    ],
)
def test_python_tool_says_how_a_program_failed(program: str, said: str) -> None:
    assert run(program).startswith(said)


def test_python_tool_leaves_the_middle_of_long_output_out() -> None:
    result = run("print('a' * 50 + 'b' * 50)", max_characters=20)
    assert result == "aaaaaaaaaa\n[80 characters left out]\nbbbbbbbbbb"


def test_python_tool_remembers_nothing_of_a_call() -> None:
    run("import builtins; builtins.kept = 1; open('/tmp/kept', 'w').write('1')")
    assert run("print(kept)").startswith("error: NameError")
    assert run("print(open('/tmp/kept').read())").startswith("error: FileNotFoundError")


def test_python_tool_answers_several_threads_at_once() -> None:
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda number: run(f"print({number})"), range(12)))
    assert results == [str(number) for number in range(12)]


def test_python_tool_gets_the_settings_of_the_sandbox() -> None:
    make = get_environment("python", {}, CodeConfig(timeout_s=0.5))
    call = json.dumps({"name": "python", "arguments": {"code": "while True: pass"}})
    said = make().step(f"<tool_call>{call}</tool_call>").text
    assert said == "error: the program took longer than 0.5 seconds"
