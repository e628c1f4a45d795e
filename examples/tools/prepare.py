"""Writes the questions of the two examples with environments, and a tiny model that can play them.

    python examples/tools/prepare.py --directory outputs/tools

makes `<directory>/calculator.jsonl`, `<directory>/number_game.jsonl` and `<directory>/tiny`, a
two-layer model of 60,000 parameters that has seen what turns, calls and guesses look like, but not
which are right. It takes some seconds on a CPU.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tiny_policy import make_tokenizer, write_tiny_policy

FACTORS = range(2, 6)
LOW, HIGH = 1, 16
QUESTION = "What is {} * {} ?"
GAME = "Find the number from 1 to 16 ."
CALL = '<tool_call>{{"name":"calculator","arguments":{{"expression":"{}*{}"}}}}</tool_call>'
"""Without spaces, so that it is one word."""
FORMAT_STEPS = 150
"""Steps of supervised training on conversations with random guesses and factors."""


def write_questions(directory: Path) -> None:
    """Products for the calculator, hidden numbers for the game."""
    products = [
        {"prompt": QUESTION.format(a, b), "answer": str(a * b)} for a in FACTORS for b in FACTORS
    ]
    games = [{"prompt": GAME, "answer": str(secret)} for secret in range(LOW, HIGH + 1)]
    for name, rows in (("calculator", products), ("number_game", games)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (directory / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def words() -> list[str]:
    """All that is said; a whole call is a word."""
    calls = [CALL.format(a, b) for a in FACTORS for b in FACTORS]
    numbers = [str(number) for number in range(max(FACTORS) ** 2 + 1)]
    return [*numbers, "system user assistant tool higher lower", QUESTION, GAME, *calls]


def conversation(generator: random.Random) -> list[dict[str, str]]:
    """A well-formed conversation; its calls and guesses are random."""
    a, b = generator.choice(FACTORS), generator.choice(FACTORS)
    if generator.random() < 0.5:
        called = generator.choice(FACTORS), generator.choice(FACTORS)
        turns = [CALL.format(*called), str(called[0] * called[1]), str(called[0] * called[1])]
        roles = ["user", "assistant", "tool", "assistant"]
        texts = [QUESTION.format(a, b), *turns]
    else:
        roles, texts = ["user"], [GAME]
        for _ in range(4):
            roles += ["assistant", "user"]
            texts += [str(generator.randint(LOW, HIGH)), generator.choice(("higher", "lower"))]
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]


def main() -> None:
    """Writes questions and model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, default=Path("outputs/tools"))
    directory = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    write_questions(directory)
    write_tiny_policy(
        directory / "tiny",
        make_tokenizer(words()),
        conversation,
        positions=128,
        steps=FORMAT_STEPS,
        batch=32,
    )


if __name__ == "__main__":
    main()
