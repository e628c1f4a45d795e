"""Environments of verifiers, played as the package's own loop plays them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from megatron_resrl.data.records import PromptRecord
from megatron_resrl.rollout.environments.packages import MissingPackage
from megatron_resrl.rollout.environments.verifiers_environment import (
    VerifiersEnvironment,
    questions,
)

ROOT = Path(__file__).resolve().parents[4]
ID = "verifiers-environments"
"""tests/verifiers_environments.py."""
CALL = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 1}}</tool_call>'


@pytest.fixture(scope="module")
def vf() -> Any:
    # Importing it takes half a minute; tests that need it are marked slow.
    return pytest.importorskip("verifiers", reason="megatron-resrl[verifiers]")


def record_of(row: dict[str, Any]) -> PromptRecord:
    extra = {key: row[key] for key in ("example", "split") if key in row}
    return PromptRecord(0, row["prompt"], row["answer"], "test", extra, row.get("tools"))


def played(kind: str, turns: list[str], example: int = 1) -> tuple[list[str], list[float]]:
    """Texts and scores of an episode, and that it ends with its last turn."""
    row = list(questions(ID, {"kind": kind}))[example]
    environment = VerifiersEnvironment(ID, {"kind": kind})
    environment.reset(record_of(row), (0,))
    said = [environment.step(turn) for turn in turns]
    environment.close()
    assert [each.done for each in said] == [False] * (len(turns) - 1) + [True]
    return [each.text for each in said], [each.score for each in said]


def played_by_the_package(vf: Any, kind: str, turns: list[str], example: int = 1) -> Any:
    """The state after the package's own loop, with a client that says the turns."""
    from verifiers.clients import Client

    left = iter(turns)

    async def say(self: Any, prompt: Any, **_: Any) -> Any:
        content = next(left)
        calls = None
        if kind == "tool" and content == CALL:
            calls = [vf.types.ToolCall(id="0", name="add", arguments='{"a": 1, "b": 1}')]
            content = ""
        message = vf.types.ResponseMessage(
            content=content, tool_calls=calls, finish_reason="stop", is_truncated=False
        )
        return vf.types.Response(id="", created=0, model="", message=message)

    methods = dict.fromkeys(Client.__abstractmethods__, None) | {"get_response": say}
    client = type("Saying", (Client,), methods)(None)
    environment = vf.load_environment(ID, kind=kind)
    example_row = environment.get_dataset()[example]

    async def rollout() -> Any:
        state = await environment.rollout(example_row, client, "model", {})
        await environment.rubric.score_rollout(state)
        return state

    return asyncio.run(rollout())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "turns", "texts"),
    [
        ("single", ["it is 2"], [""]),
        ("single", ["it is 3"], [""]),
        ("guessing", ["9", "1", "2"], ["lower", "higher", ""]),
        ("guessing", ["9", "9", "9", "9"], ["lower", "lower", "lower", ""]),
        ("tool", [CALL, "it is 2"], ["2", ""]),
        ("tool", ["<tool_call>{</tool_call>"], [""]),
    ],
)
def test_verifiers_environment_plays_as_the_package(
    vf: Any, kind: str, turns: list[str], texts: list[str]
) -> None:
    said, scores = played(kind, turns)
    assert said == texts
    state = played_by_the_package(vf, kind, turns)
    assert scores[-1] == state["reward"]
    assert len(state["trajectory"]) == len(turns)
    told = [each.content for each in state["completion"] if each.role in ("user", "tool")]
    assert [text for text in said if text] == [text for text in told if text != "found"]


@pytest.mark.slow
@pytest.mark.usefixtures("vf")
def test_verifiers_environment_scores_every_turn() -> None:
    # An episode that our limit ends is scored as it stands: half for one turn, a quarter for two.
    assert played("guessing", ["9", "2"])[1] == [0.5, 1.25]


@pytest.mark.slow
@pytest.mark.usefixtures("vf")
def test_verifiers_environment_cleans_up_once() -> None:
    played("guessing", ["2"])
    import verifiers_environments

    verifiers_environments.CLEANED.clear()
    played("guessing", ["9", "2"])
    assert len(verifiers_environments.CLEANED) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("vf")
def test_verifiers_questions_have_prompts_and_tools(tmp_path: Path) -> None:
    rows = list(questions(ID, {"kind": "single"}))
    assert rows[1] == {
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What is 1 + 1?"},
        ],
        "answer": "2",
        "example": 1,
        "split": "train",
    }
    (heldout,) = questions(ID, {"kind": "single"}, "eval")
    assert (heldout["answer"], heldout["split"]) == ("9", "eval")
    environment = VerifiersEnvironment(ID, {"kind": "single"})
    environment.reset(record_of(heldout), (0,))
    assert environment.step("9").score == 1.0
    (schema,) = next(questions(ID, {"kind": "tool"}))["tools"]
    assert (schema["type"], schema["function"]["name"]) == ("function", "add")
    assert set(schema["function"]["parameters"]["properties"]) == {"a", "b"}
    assert VerifiersEnvironment(ID, {"kind": "tool"}).role == "tool"
    # The tool writes them.
    file = tmp_path / "data" / "rows.jsonl"
    command = [sys.executable, ROOT / "tools/verifiers_questions.py", ID, "--output", file]
    path = {"PYTHONPATH": ":".join([str(ROOT), *sys.path])}
    subprocess.run([*command, "--options", '{"kind": "single"}'], check=True, env=path)
    assert [json.loads(line) for line in file.open()] == rows


@pytest.mark.slow
@pytest.mark.usefixtures("vf")
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("own_loop", "has a get_model_response of its own, which asks a model server"),
        ("group", "scores the samples of a group together"),
    ],
)
def test_verifiers_environment_refuses_other_loops(kind: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        VerifiersEnvironment(ID, {"kind": kind})


@pytest.mark.slow
@pytest.mark.usefixtures("vf")
def test_verifiers_environment_refuses_rows_of_others() -> None:
    row = next(questions(ID, {"kind": "guessing"}))
    environment = VerifiersEnvironment(ID, {"kind": "guessing"})
    for wrong in ({"example": 3}, {"example": "0"}, {"split": "test"}):
        with pytest.raises(ValueError, match=r"column example .* 0 to 2|split is 'test'"):
            environment.reset(record_of(row | wrong), (0,))
    with pytest.raises(ValueError, match="does not ask what the environment asks"):
        environment.reset(record_of(row | {"example": 1}), (0,))


@pytest.mark.slow
@pytest.mark.usefixtures("vf")
def test_verifiers_environment_refuses_rewritten_turns() -> None:
    row = next(questions(ID, {"kind": "rewriting"}))
    environment = VerifiersEnvironment(ID, {"kind": "rewriting"})
    environment.reset(record_of(row), (0,))
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        environment.step("9")
    # What an environment raises reaches the run.
    other = VerifiersEnvironment(ID, {"kind": "guessing"})
    other.reset(record_of(next(questions(ID, {"kind": "guessing"}))), (0,))
    with pytest.raises(ValueError, match="invalid literal for int"):
        other.step("nine")


def test_verifiers_environment_names_the_version_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    newer = types.ModuleType("verifiers")
    newer.__version__ = "0.4.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "verifiers", newer)
    with pytest.raises(MissingPackage, match=r"0\.4\.0 has no load_environment.*below 0\.4"):
        VerifiersEnvironment("wordle")
    monkeypatch.setitem(sys.modules, "verifiers", None)
    with pytest.raises(MissingPackage, match=r"megatron-resrl\[verifiers\]"):
        VerifiersEnvironment("wordle")
