"""Environments of verifiers for tests: `load_environment(kind=...)` makes one of them."""

from __future__ import annotations

from typing import Any

import verifiers as vf
from datasets import Dataset

ROWS = [{"question": f"What is {number} + 1?", "answer": str(number + 1)} for number in range(3)]
CLEANED: list[str] = []
"""Ids of episodes that were cleaned up."""


def _texts(messages: list[Any]) -> str:
    return " ".join(str(each.content) for each in messages if each.role == "assistant")


def right(completion: list[Any], answer: str) -> float:
    """The last turn has the answer."""
    return float(answer in str(completion[-1].content))


def brief(completion: list[Any]) -> float:
    """Fewer turns are better."""
    return 1 / sum(each.role == "assistant" for each in completion)


def said_it(completion: list[Any], answer: str) -> float:
    """A turn was the answer."""
    return float(answer in _texts(completion).split())


class Guessing(vf.MultiTurnEnv):
    """Higher or lower, until it is found or four turns are taken."""

    async def setup_state(self, state: vf.State) -> None:
        state["secret"] = int(state["answer"])

    async def env_response(self, messages: list[Any], state: vf.State, **_: Any) -> list[Any]:
        guess = int(messages[-1].content)
        if guess == state["secret"]:
            state["final_env_response"] = [vf.UserMessage(content="found")]
            return []
        hint = "higher" if guess < state["secret"] else "lower"
        return [{"role": "user", "content": hint}]

    @vf.cleanup
    async def note(self, state: vf.State) -> None:
        CLEANED.append(state["trajectory_id"])


class Rewriting(Guessing):
    """Forgets what was said."""

    async def get_prompt_messages(self, state: vf.State) -> list[Any]:
        return [{"role": "user", "content": f"turn {len(state['trajectory'])}"}]


class OwnLoop(Guessing):
    """Asks a model by itself."""

    async def get_model_response(self, *given: Any, **named: Any) -> Any:
        return await super().get_model_response(*given, **named)


def add(a: int, b: int) -> int:
    """Adds two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


def together(states: list[Any]) -> list[float]:
    """Scores samples of a group by each other."""
    return [0.0 for _ in states]


def load_environment(kind: str, **options: Any) -> vf.Environment:
    """One of the environments above."""
    rows = Dataset.from_list(ROWS)
    heldout = Dataset.from_list([{"question": "What is 8 + 1?", "answer": "9"}])
    common: dict[str, Any] = {"dataset": rows, "eval_dataset": heldout} | options
    scored = vf.Rubric(funcs=[said_it, brief], weights=[1.0, 0.5])
    if kind == "single":
        return vf.SingleTurnEnv(
            rubric=vf.Rubric(funcs=[right]), system_prompt="Be brief.", **common
        )
    if kind == "tool":
        return vf.ToolEnv(tools=[add], rubric=vf.Rubric(funcs=[right]), max_turns=4, **common)
    if kind == "group":
        return vf.SingleTurnEnv(rubric=vf.Rubric(funcs=[right, together]), **common)
    classes = {"guessing": Guessing, "rewriting": Rewriting, "own_loop": OwnLoop}
    return classes[kind](rubric=scored, max_turns=4, **common)
