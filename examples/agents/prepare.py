"""Writes the questions of an example with an agent, and a tiny model that can play it.

    python examples/agents/prepare.py textworld --directory outputs/agents/textworld

makes `<directory>/questions.jsonl` and `<directory>/tiny`, a two-layer model that has seen what
commands and calls look like, but not which are right; for `search` also what is searched,
`<directory>/documents.jsonl`. It takes some seconds on a CPU. Questions alone, for a model of
yours: `--no-model`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tiny_policy import UNKNOWN, make_tokenizer, write_tiny_policy

GAMES = 8
"""Questions about games: different ones of the same size."""
FACTORS = range(2, 6)
NAMES = ("Ada", "Emmy", "Grace", "Hedy", "Katherine", "Lise", "Marie", "Sofia")
STORY = "The drawer of {} holds {} coins ."
LAKE = "Walk from 0 to 3 . Say 0 for left , 1 for down , 2 for right or 3 for up ."
FORMAT_STEPS = 100
"""Steps of supervised training on conversations with random commands."""


@dataclass(frozen=True)
class Agent:
    """What is asked, and what turns look like."""

    rows: Sequence[dict[str, Any]]
    """Questions."""
    commands: Sequence[str]
    """Turns of the policy."""
    told: Callable[[random.Random], str]
    """An answer of the environment, which need not fit."""
    role: str = "user"
    """Who says it; after `tool` the policy says a number."""


def _something(generator: random.Random) -> str:
    """Words that the model does not know."""
    return "something " * generator.randrange(8, 64)


def _number(generator: random.Random) -> str:
    return str(generator.choice(FACTORS) * generator.choice(FACTORS))


def _call(name: str, argument: str, value: str) -> str:
    """Without spaces, so that it is one word."""
    call = {"name": name, "arguments": {argument: value}}
    return f"<tool_call>{json.dumps(call, separators=(',', ':'))}</tool_call>"


def _hint(generator: random.Random) -> str:
    return generator.choice(("higher", "lower"))


def _coins(name: str) -> int:
    return 2 + NAMES.index(name)


def _games(rules: str, column: str, **columns: Any) -> list[dict[str, Any]]:
    """One row for each game; nobody reads the answer, because the environment scores."""
    return [{"prompt": rules, "answer": "-", column: number} | columns for number in range(GAMES)]


GUESSING = Agent(
    _games("Guess a number from 0 to 7 . Say one in each turn .", "seed"),
    tuple(map(str, range(8))),
    _hint,
)
AGENTS = {
    "alfworld": Agent(
        _games("You do an errand in a household. Say one command, such as: look", "seed"),
        (
            *("look", "inventory", "go to countertop 1", "go to desk 1", "go to drawer 1"),
            *("open drawer 1", "take mug 1 from countertop 1", "move mug 1 to desk 1"),
        ),
        _something,
    ),
    "textworld": Agent(
        _games("You play a text adventure. Say one command, such as: look", "seed"),
        (
            *("look", "inventory", "go north", "go south", "go east", "go west"),
            *("take all", "open chest", "open door", "unlock chest with keycard"),
        ),
        _something,
    ),
    "scienceworld": Agent(
        _games(
            "You work in a laboratory. Say one command, such as: look around",
            "variation",
            task="find-plant",
        ),
        (
            *("look around", "inventory", "wait1", "go to hallway", "go to kitchen"),
            *("go to outside", "focus on orange", "focus on avocado seed", "open door to hallway"),
        ),
        _something,
    ),
    "webshop": Agent(
        _games("You buy what you are told. Say search[words] or click[text]", "seed"),
        (
            *("search[red shoes]", "search[blue cup]", "click[b001]", "click[b002]"),
            *("click[back to search]", "click[next >]", "click[buy now]"),
        ),
        _something,
    ),
    "openenv": GUESSING,
    "verifiers": GUESSING,
    "gymnasium": Agent(_games(LAKE, "seed"), ("0", "1", "2", "3"), lambda _: "1"),
    "python": Agent(
        [
            {"prompt": f"What is {a} * {b} ?", "answer": str(a * b)}
            for a in FACTORS
            for b in FACTORS
        ],
        [_call("python", "code", f"print({a}*{b})") for a in FACTORS for b in FACTORS],
        _number,
        "tool",
    ),
    "search": Agent(
        [
            {"prompt": f"How many coins are in the drawer of {name} ?", "answer": str(_coins(name))}
            for name in NAMES
        ],
        [_call("search", "query", name) for name in NAMES],
        lambda generator: STORY.format(generator.choice(NAMES), _number(generator)),
        "tool",
    ),
}


def conversation(agent: Agent, generator: random.Random) -> list[dict[str, str]]:
    """A well-formed conversation, with random commands and answers."""
    texts, roles = [generator.choice(agent.rows)["prompt"]], ["user"]
    for _ in range(1 if agent.role == "tool" else 2):
        texts += [generator.choice(agent.commands), agent.told(generator)]
        roles += ["assistant", agent.role]
    if agent.role == "tool":
        texts.append(_number(generator))
        roles.append("assistant")
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]


def write_tiny_model(agent: Agent, directory: Path) -> None:
    """Saves the tiny model and its tokenizer; words beyond rules and commands are one token."""
    numbers = [str(number) for number in range(max(FACTORS) ** 2 + 1)]
    asked = [row["prompt"] for row in agent.rows]
    texts = ["system user assistant tool", *asked, *agent.commands, STORY, *numbers]
    write_tiny_policy(
        directory,
        make_tokenizer(texts, UNKNOWN),
        partial(conversation, agent),
        positions=1024,
        steps=FORMAT_STEPS,
        batch=16,
    )


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Saves rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Writes questions and model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("agent", choices=sorted(AGENTS))
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--no-model", action="store_true")
    given = parser.parse_args()
    directory = given.directory or Path("outputs/agents") / given.agent
    directory.mkdir(parents=True, exist_ok=True)
    agent = AGENTS[given.agent]
    write_lines(directory / "questions.jsonl", agent.rows)
    if given.agent == "search":
        stories = [{"text": STORY.format(name, _coins(name))} for name in NAMES]
        write_lines(directory / "documents.jsonl", stories)
    if not given.no_model:
        write_tiny_model(agent, directory / "tiny")


if __name__ == "__main__":
    main()
