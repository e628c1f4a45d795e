"""Writes the questions of an example with an agent, and a tiny model that can play it.

    python examples/agents/prepare.py textworld --directory outputs/agents/textworld

makes `<directory>/questions.jsonl` and `<directory>/tiny`, a two-layer model that has seen what
commands look like, but not which are right. It takes some seconds on a CPU. Questions alone, for a
model of yours: `--no-model`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tiny_policy import UNKNOWN, make_tokenizer, write_tiny_policy

RULES = {
    "textworld": "You play a text adventure. Say one command, such as: look",
    "scienceworld": "You work in a laboratory. Say one command, such as: look around",
}
COMMANDS = {
    "textworld": [
        *("look", "inventory", "go north", "go south", "go east", "go west"),
        *("take all", "open chest", "open door", "unlock chest with keycard"),
    ],
    "scienceworld": [
        *("look around", "inventory", "wait1", "go to hallway", "go to kitchen", "go to outside"),
        *("focus on orange", "focus on avocado seed", "open door to hallway"),
    ],
}
GAMES = 8
"""Questions: different games of the same size."""
FORMAT_STEPS = 100
"""Steps of supervised training on conversations with random commands."""


def questions(agent: str) -> list[dict[str, Any]]:
    """One row for each game; nobody reads the answer, because the environment scores."""
    column = {"textworld": "seed", "scienceworld": "variation"}[agent]
    rows = [{"prompt": RULES[agent], "answer": "-", column: number} for number in range(GAMES)]
    return [row | {"task": "find-plant"} for row in rows] if agent == "scienceworld" else rows


def conversation(agent: str, generator: random.Random) -> list[dict[str, str]]:
    """Random commands, answered with words that the model does not know."""
    texts = [RULES[agent]]
    for _ in range(2):
        texts += [generator.choice(COMMANDS[agent]), "something " * generator.randrange(8, 64)]
    roles = ["user", "assistant", "user", "assistant", "user"]
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]


def write_tiny_model(agent: str, directory: Path) -> None:
    """Saves the tiny model and its tokenizer; words beyond rules and commands are one token."""
    texts = ["system user assistant tool", RULES[agent], *COMMANDS[agent]]
    write_tiny_policy(
        directory,
        make_tokenizer(texts, UNKNOWN),
        partial(conversation, agent),
        positions=1024,
        steps=FORMAT_STEPS,
        batch=16,
    )


def main() -> None:
    """Writes questions and model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("agent", choices=sorted(RULES))
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--no-model", action="store_true")
    given = parser.parse_args()
    directory = given.directory or Path("outputs/agents") / given.agent
    directory.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in questions(given.agent))
    (directory / "questions.jsonl").write_text(lines, encoding="utf-8")
    if not given.no_model:
        write_tiny_model(given.agent, directory / "tiny")


if __name__ == "__main__":
    main()
