"""BFCL's conversations of several turns: a user's requests, and functions that change a world.

The worlds, the functions and what compares worlds are those of the package `bfcl-eval`, and the
rules are its `multi_turn_checker`'s. Calls are read and made here: the package evaluates them as
Python code, and here the policy wrote them.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from megatron_resrl.data.records import PromptRecord
from megatron_resrl.rewards.tool_calls import BrokenCall, Call, read_calls
from megatron_resrl.rollout.environments.environment import Observation
from megatron_resrl.rollout.environments.packages import import_package

CATEGORIES = (
    "multi_turn_base",
    "multi_turn_miss_func",
    "multi_turn_miss_param",
    "multi_turn_long_context",
)
"""Of BFCL: a function comes late, a value comes late, and results that are long."""
SYSTEM = """\
You can call the functions below to do what the user asks. Reply with the calls alone, in the form
[name(parameter=value, ...), ...]
with values as Python writes them. The next message has their results, and you may call more. When \
a request is done, or no function fits, or a value is missing, say so in words and call nothing.

Functions, as JSON schemas:
"""
_COLUMNS = ("id", "requests", "calls", "classes", "world")


class BFCLConversation:
    """One conversation. A turn with calls is answered with their results; a turn without any ends
    the user's request, and the next one follows.

    A request is done right if the world is then what the right calls make of it, and their results
    were all seen. The first request that is not ends the episode.
    """

    role: Literal["user"] = "user"

    def __init__(self, score: str = "all", steps_per_request: int = 20) -> None:
        """
        Args:
            score: `all`: 1 if every request was done right, otherwise 0; `share`: the share of the
                requests.
            steps_per_request: Turns with calls, of which one more ends the episode; 20 as in BFCL.

        Raises:
            ValueError: Another kind of score, or no step.
            MissingPackage: `bfcl-eval` is not installed.
        """
        if score not in ("all", "share"):
            raise ValueError(f"score is {score!r}; give all or share")
        if steps_per_request < 1:
            raise ValueError(f"steps_per_request is {steps_per_request}; give at least 1")
        self._kind, self._limit = score, steps_per_request
        self._checker = _module("eval_checker.multi_turn_eval.multi_turn_checker")

    def reset(self, record: PromptRecord, seed: tuple[int, ...]) -> None:
        """See `Environment.reset`. The prompt holds the first request.

        Raises:
            ValueError: The row is not one of `questions`.
        """
        row = _read(record)
        self._requests: list[str] = row["requests"]
        self._truth: list[list[str]] = row["calls"]
        long_context = "long_context" in row["id"]
        self._own, self._right = (
            _World(row["classes"], row["world"], long_context=long_context) for _ in range(2)
        )
        self._results: list[str] = []
        """Of all calls of the policy."""
        self._done = self._steps = 0

    def step(self, action: str) -> Observation:
        """See `Environment.step`. A turn whose calls cannot be read has none, as in BFCL."""
        try:
            calls = read_calls(action)
        except BrokenCall:
            calls = []
        if not calls:
            return self._end_request()
        self._steps += 1
        if self._steps > self._limit:
            return Observation(done=True, score=self._score())
        results = [self._own.run(call) for call in calls]
        self._results += results
        said = (f"{call.name}: {result}" for call, result in zip(calls, results, strict=True))
        return Observation("\n".join(said), score=self._score())

    def _end_request(self) -> Observation:
        truth = [call for text in self._truth[self._done] for call in read_calls(text)]
        if not self._is_right(truth):
            return Observation(done=True, score=self._score())
        self._done += 1
        self._steps = 0
        if self._done == len(self._truth):
            return Observation(done=True, score=self._score())
        return Observation(self._requests[self._done - 1], score=self._score())

    def _is_right(self, truth: Sequence[Call]) -> bool:
        """Makes the right calls, too. Where there are none to be made, nothing is compared."""
        results = [self._right.run(call) for call in truth]
        if not truth:
            return True
        return (
            self._steps > 0
            and self._checker.state_checker(self._own.instances, self._right.instances)["valid"]
            and self._checker.response_checker(self._results, results, self._done)["valid"]
        )

    def _score(self) -> float:
        if self._kind == "share":
            return self._done / len(self._truth)
        return float(self._done == len(self._truth))


class _World:
    """Objects of the package's classes, and their methods."""

    def __init__(
        self, classes: Sequence[str], scenario: Mapping[str, Any], *, long_context: bool
    ) -> None:
        self.instances: dict[str, Any] = {}
        self._methods: dict[str, Callable[..., Any]] = {}
        known = _module("constants.executable_backend_config")
        for name in classes:
            place = known.CLASS_FILE_PATH_MAPPING[name].removeprefix("bfcl_eval.")
            instance = self.instances[name] = getattr(_module(place), name)()
            if name not in known.STATELESS_CLASSES:
                own = copy.deepcopy(scenario.get(name, {}))
                instance._load_scenario(own, long_context=long_context)
            methods = inspect.getmembers(instance, inspect.ismethod)
            self._methods |= {key: each for key, each in methods if not key.startswith("_")}

    def run(self, call: Call) -> str:
        """What a call returns, in the package's form; of one that fails, why."""
        method = self._methods.get(call.name)
        if method is None:
            return f"Error during execution: there is no function {call.name!r}"
        # `read_calls` names the places of arguments without a name.
        places = [each for each in call.arguments if each.isdigit()]
        named = {key: each for key, each in call.arguments.items() if key not in places}
        try:
            result = method(*(call.arguments[place] for place in places), **named)
        except Exception as error:  # The functions raise all kinds of them.
            return f"Error during execution: {error}"
        if isinstance(result, str):
            return result
        if isinstance(result, dict):
            try:
                return json.dumps(result)
            except (TypeError, ValueError):
                return str(result)
        return str(result)


def questions(category: str) -> Iterator[dict[str, Any]]:
    """Rows of a question file: the conversations of a category, of the package's own files.

    Args:
        category: One of `CATEGORIES`.

    Raises:
        ValueError: There is no such category.
        MissingPackage: See `BFCLConversation`.
    """
    if category not in CATEGORIES:
        raise ValueError(f"there is no category {category!r}; give one of {', '.join(CATEGORIES)}")
    file = f"BFCL_v4_{category}.json"
    truth = {row["id"]: row["ground_truth"] for row in _lines(f"possible_answer/{file}")}
    added = _module(
        "constants.default_prompts"
    ).DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_PROMPTING
    for row in _lines(file):
        functions = _functions(row["involved_classes"])
        late = {name for names in row.get("missed_function", {}).values() for name in names}
        at_first = set(functions) - late - set(row.get("excluded_function", ()))
        requests = []
        for number, messages in enumerate(row["question"]):
            texts = [each["content"] for each in messages]
            if new := row.get("missed_function", {}).get(str(number)):
                texts.append(added.format(functions=_described(functions, new)))
            requests.append("\n".join(texts))
        system = SYSTEM + _described(functions, at_first)
        yield {
            "prompt": [
                {"role": "system", "content": system},
                {"role": "user", "content": requests[0]},
            ],
            "answer": "-",
            "id": row["id"],
            "requests": json.dumps(requests[1:]),
            "calls": json.dumps(truth[row["id"]]),
            "classes": json.dumps(row["involved_classes"]),
            "world": json.dumps(row["initial_config"]),
        }


def _read(record: PromptRecord) -> dict[str, Any]:
    missing = [name for name in _COLUMNS if not isinstance(record.extra.get(name), str)]
    if missing:
        raise ValueError(
            f"{record} has no text in the column {missing[0]}; write the file with "
            "tools/bfcl_questions.py"
        )
    row = {name: json.loads(record.extra[name]) for name in _COLUMNS if name != "id"}
    return row | {"id": record.extra["id"]}


def _functions(classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Schemas of the functions of several classes, by name."""
    files = _module("constants.executable_backend_config").MULTI_TURN_FUNC_DOC_FILE_MAPPING
    rows = (row for name in classes for row in _lines(f"multi_turn_func_doc/{files[name]}"))
    return {row["name"]: row for row in rows}


def _described(functions: Mapping[str, dict[str, Any]], names: Any) -> str:
    return "\n".join(json.dumps(each) for name, each in functions.items() if name in names)


@cache
def _lines(name: str) -> list[dict[str, Any]]:
    """A file of JSON lines of the package."""
    folder = Path(_module("constants.default_prompts").__file__).parents[1] / "data"
    text = (folder / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _module(name: str) -> Any:
    return import_package(
        f"bfcl_eval.{name}",
        source="pip install --no-deps bfcl-eval==2026.3.23 (what it depends on is not needed)",
    )
