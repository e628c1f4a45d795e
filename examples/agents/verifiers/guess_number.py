"""An environment of verifiers: a number from 0 to 7 is to be guessed."""

from __future__ import annotations

from typing import Any

import verifiers as vf
from datasets import Dataset

RULES = "Guess a number from 0 to 7 . Say one in each turn ."


class GuessNumber(vf.MultiTurnEnv):
    """Says `higher` or `lower` until it is found."""

    async def env_response(self, messages: list[Any], state: vf.State, **_: Any) -> list[Any]:
        """What is said to the last guess."""
        guess, secret = messages[-1].content.strip(), state["answer"]
        if guess == secret:
            state["final_env_response"] = [vf.UserMessage(content="found")]
            return []
        hint = "higher" if guess.isdecimal() and int(guess) < int(secret) else "lower"
        return [{"role": "user", "content": hint}]


def found(completion: list[Any], answer: str) -> float:
    """1 if the last guess is right."""
    return float(completion[-1].content.strip() == answer)


def load_environment(max_turns: int = 4) -> vf.Environment:
    """What `id: guess-number` names: `verifiers` imports the module of that name."""
    rows = [{"question": RULES, "answer": str(number)} for number in range(8)]
    return GuessNumber(
        dataset=Dataset.from_list(rows), rubric=vf.Rubric(funcs=[found]), max_turns=max_turns
    )
