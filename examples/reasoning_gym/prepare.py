"""Writes a tiny model that can answer the questions of the example.

    python examples/reasoning_gym/prepare.py --directory outputs/reasoning_gym/tiny

A two-layer model that has seen what an answer looks like, but not which is right. It takes some
seconds on a CPU.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tiny_policy import UNKNOWN, make_tokenizer, write_tiny_policy

SYSTEM = "Write the answer as <answer> 7 </answer>"
QUESTION = "State the final answer to the following arithmetic problem: {} {} {} ="
NUMBERS = range(-9, 19)
"""Sums and differences of two digits."""
FORMAT_STEPS = 100
"""Steps of supervised training on questions with random answers."""


def conversation(generator: random.Random) -> list[dict[str, str]]:
    """A question with a random answer."""
    left, right = generator.randrange(10), generator.randrange(10)
    question = QUESTION.format(left, generator.choice("+-"), right)
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": question},
        {"role": "assistant", "content": f"<answer> {generator.choice(NUMBERS)} </answer>"},
    ]


def main() -> None:
    """Writes the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, default=Path("outputs/reasoning_gym/tiny"))
    texts = ["system user assistant", SYSTEM, QUESTION.format("+", "-", ""), *map(str, NUMBERS)]
    write_tiny_policy(
        parser.parse_args().directory,
        make_tokenizer(texts, UNKNOWN),
        conversation,
        positions=128,
        steps=FORMAT_STEPS,
        batch=32,
    )


if __name__ == "__main__":
    main()
