"""Programming tasks: HumanEval, MBPP, contests. Ground truths are tests of the reward `code`."""

from __future__ import annotations

import ast
import base64
import functools
import io
import json
import pickle
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_resrl.config.schema_questions import CodeConfig
from megatron_resrl.data.rows import is_blank, parsed, read_rows
from megatron_resrl.errors import InputError
from megatron_resrl.preparation.question import Question, first_of, kept, required
from megatron_resrl.rewards.code_results import same_value
from megatron_resrl.sandbox.backends import make_runner
from megatron_resrl.sandbox.inside.examiner import tested_names
from megatron_resrl.sandbox.runners import Missing, Runner

_BY_PROPERTY = {
    # Any root is right, so results cannot be compared; the bound is that of HumanEval's own test.
    "HumanEval/32": "assert abs(poly({0}, find_zero({0}))) < 1e-4",
}
"""Tasks with several right results -> the test of one list of arguments."""
_KEPT = ("task_id", "question_id", "difficulty", "contest_date", "id", "rating")


def function_question(row: dict[str, Any], where: str, source: str) -> Question | None:
    """A function to complete: HumanEval (`test`) and EvalPlus's files (`base_input`, `plus_input`).

    EvalPlus's files hold arguments and a solution, no results: the solution is run in a sandbox.
    Tests whose result is no JSON are left out.

    Raises:
        SettingError: There is no sandbox.
    """
    prompt, entry = required(row, where, "prompt"), required(row, where, "entry_point")
    helpers = _without(f"{prompt}\n    pass\n", entry, where)
    if "test" in row:
        truth: dict[str, Any] = {"setup": helpers, "asserts": row["test"], "entry_point": entry}
        return Question(prompt, json.dumps(truth), prompt, source, kept(row, *_KEPT))
    inputs = [
        arguments
        for name in ("base_input", "plus_input")
        for arguments in parsed(required(row, where, name))
    ]
    if form := _BY_PROPERTY.get(str(row.get("task_id"))):
        asserts = [form.format(*map(repr, arguments)) for arguments in inputs]
        truth = {"setup": helpers, "asserts": asserts, "entry_point": entry}
    else:
        program = f"{prompt}{required(row, where, 'canonical_solution')}"
        results = [*_results(program, entry, inputs)]
        if not results:
            return None
        given, expected = zip(*results, strict=True)
        truth = {"fn_name": entry, "inputs": given, "outputs": expected}
    return Question(prompt, json.dumps(truth), prompt, source, kept(row, *_KEPT))


def mbpp_question(row: dict[str, Any], where: str, source: str) -> Question | None:
    """A task of MBPP or MBPP+ in words, followed by its first tests."""
    text = str(required(row, where, "text", "prompt")).strip()
    shown = parsed(required(row, where, "test_list"))
    setup = [parsed(row.get(name)) or [] for name in ("test_setup_code", "test_imports")]
    lines = [line for each in setup for line in ([each] if isinstance(each, str) else each)]
    # MBPP+ has a program of many tests, which begin with those that are shown.
    tests = [row["test"]] if row.get("test") else shown
    truth = {"setup": "\n".join(lines), "asserts": tests}
    if not tested_names("\n".join(tests)):
        # Tasks such as "write sum": what tests call looks like a builtin.
        truth["entry_point"] = _defined(required(row, where, "code"), shown, where)
    prompt = "\n".join([text, "Your program should pass these tests:", "", *shown])
    return Question(prompt, json.dumps(truth), text, source, kept(row, *_KEPT))


def _defined(code: str, tests: Sequence[str], where: str) -> str:
    """The function of a solution that tests call."""
    used = {node.id for node in ast.walk(ast.parse("\n".join(tests))) if isinstance(node, ast.Name)}
    for each in ast.parse(code).body:
        if isinstance(each, ast.FunctionDef) and each.name in used:
            return each.name
    raise InputError(f"{where}: its tests call nothing of its code; repair or leave the row out")


def mbpp_rows(first: int, last: int, paths: Sequence[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of MBPP's file with these task numbers."""
    for path in paths:
        for where, row in read_rows(path):
            if first <= int(required(row, where, "task_id")) <= last:
                yield where, row


def contest_question(row: dict[str, Any], where: str, source: str) -> Question | None:
    """A task of a contest: LiveCodeBench, DeepCoder, Codeforces (open-r1).

    Tasks without tests, and those of which several outputs are right, have no answer.
    """
    if not is_blank(row.get("generated_checker")):
        return None
    truth = _tests(row, where)
    if truth is None:
        return None
    text = str(required(row, where, "question_content", "problem", "description")).strip()
    parts = [text]
    for title, column in (("Input", "input_format"), ("Output", "output_format")):
        if not is_blank(row.get(column)):
            parts.append(f"{title}\n{row[column].strip()}")
    if not is_blank(row.get("starter_code")):
        parts.append(f"Begin with this code:\n\n{row['starter_code'].rstrip()}")
    elif "fn_name" in truth:
        parts.append(f"Write a function with the name {truth['fn_name']}.")
    else:
        parts.append("The program reads from standard input and prints to standard output.")
    return Question("\n\n".join(parts), json.dumps(truth), text, source, kept(row, *_KEPT))


def _tests(row: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    """Tests as the reward `code` takes them; None: there are none."""
    if "private_test_cases" in row:
        hidden = row["private_test_cases"] or "[]"
        tests = [*json.loads(row["public_test_cases"]), *json.loads(_unpacked(hidden, where))]
        name = (parsed(row.get("metadata")) or {}).get("func_name")
        return _grouped(tests, name)
    _, tests = first_of(dict(row), where, "tests", "official_tests")
    tests = parsed(tests)
    if isinstance(tests, dict) and "inputs" in tests and "outputs" in tests:
        return tests if tests["inputs"] else None
    return _grouped(tests, None) if isinstance(tests, list) else None


def _grouped(tests: Sequence[Mapping[str, Any]], name: str | None) -> dict[str, Any] | None:
    """One list of inputs and one of outputs; functions' arguments stand on lines of JSON."""
    if not tests:
        return None
    metadata = parsed(tests[0].get("metadata")) or {}
    name = name or tests[0].get("fn_name") or metadata.get("func_name")
    if name is None:
        return {
            "inputs": [each["input"] for each in tests],
            "outputs": [each["output"] for each in tests],
        }
    return {
        "fn_name": name,
        "inputs": [_arguments(each["input"]) for each in tests],
        "outputs": [parsed_json(each["output"]) for each in tests],
    }


def _arguments(value: Any) -> Any:
    return [parsed_json(line) for line in value.split("\n")] if isinstance(value, str) else value


def parsed_json(value: Any) -> Any:
    """What JSON text stands for; anything else as it is."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


class _Texts(pickle.Unpickler):
    """Reads plain data: a pickle that names a class or function would run it."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _unpacked(text: str, where: str) -> str:
    """LiveCodeBench's hidden tests: JSON, or a compressed pickle of it."""
    if text.lstrip().startswith("["):
        return text
    try:
        content = _Texts(io.BytesIO(zlib.decompress(base64.b64decode(text)))).load()
    except (ValueError, zlib.error, pickle.UnpicklingError, EOFError) as error:
        raise InputError(
            f"{where}: private_test_cases cannot be read ({error}); give the file as published"
        ) from error
    return str(content)


def _results(
    program: str, entry: str, inputs: Sequence[Sequence[Any]]
) -> Iterator[tuple[Sequence[Any], Any]]:
    """Arguments with the result of a program, where it is JSON."""
    for arguments, result in zip(inputs, _runner().call(program, entry, inputs), strict=True):
        if isinstance(result, Missing):
            continue
        try:
            plain = json.loads(json.dumps(result))
        except (TypeError, ValueError):
            continue
        if same_value(result, plain):
            yield arguments, plain


@functools.cache
def _runner() -> Runner:
    return make_runner(CodeConfig())


def _without(code: str, entry: str, where: str) -> str:
    """What a task's code defines beside the function to be completed: tests may use it."""
    try:
        tree = ast.parse(code)
    except SyntaxError as error:
        raise InputError(f"{where}: prompt is no Python ({error.msg}); repair the row") from None
    tree.body = [each for each in tree.body if getattr(each, "name", None) != entry]
    return ast.unparse(tree)
