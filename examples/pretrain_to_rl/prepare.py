"""Writes all text of the example: corpus, conversations and questions.

    python examples/pretrain_to_rl/prepare.py --directory outputs/pretrain_to_rl/data

| file | rows |
|---|---|
| corpus.jsonl | `text`: a puzzle with its solution, or arithmetic facts |
| conversations.jsonl, heldout_conversations.jsonl | `messages`: a question and its solution |
| train.jsonl, heldout.jsonl | `prompt`, `answer`, and `text`: the question as in the corpus |

The same options give the same files. No held-out puzzle stands in any other file.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from puzzles import LARGEST, LEVELS, SEPARATOR, Puzzle, apply, make_puzzle

FACTS_PER_DOCUMENT = 6
SHARE_OF_FACTS = 0.2
"""Of the corpus's documents."""
SHARE_IN_WORDS = 0.1
"""Of the corpus's puzzles, which are asked as users do."""


def puzzles(generator: random.Random, *, held_out: bool) -> Iterator[Puzzle]:
    """Endless puzzles of all levels in turn, held out or not."""
    while True:
        for level in LEVELS:
            puzzle = make_puzzle(generator, level)
            while puzzle.held_out != held_out:
                puzzle = make_puzzle(generator, level)
            yield puzzle


def distinct(puzzles: Iterable[Puzzle]) -> Iterator[Puzzle]:
    """Leaves out puzzles whose numbers and target have come before."""
    seen = set()
    for puzzle in puzzles:
        key = (*sorted(puzzle.numbers), puzzle.target)
        if key not in seen:
            seen.add(key)
            yield puzzle


def documents(generator: random.Random) -> Iterator[dict[str, str]]:
    """Endless rows of the corpus."""
    for puzzle in puzzles(generator, held_out=False):
        if generator.random() < SHARE_OF_FACTS:
            yield {"text": SEPARATOR.join(fact(generator) for _ in range(FACTS_PER_DOCUMENT))}
        wording = in_a_chat if generator.random() < SHARE_IN_WORDS else in_the_corpus
        yield {"text": f"{wording(puzzle)} {puzzle.solution}"}


def fact(generator: random.Random) -> str:
    """A right step."""
    while True:
        operation = generator.choice("+-*")
        highest = 12 if operation == "*" else LARGEST
        first, second = generator.randint(1, highest), generator.randint(1, highest)
        result = apply(first, operation, second)
        if 0 <= result <= LARGEST:
            return f"{first}{operation}{second}={result}"


def in_the_corpus(puzzle: Puzzle) -> str:
    """The question as the corpus writes it; a solution follows."""
    return f"{puzzle.target} from {','.join(map(str, puzzle.numbers))}:"


def in_a_chat(puzzle: Puzzle) -> str:
    """The question as a user asks it."""
    *others, last = map(str, puzzle.numbers)
    return f"Make {puzzle.target} from {', '.join(others)} and {last}."


def conversation(puzzle: Puzzle) -> dict[str, Any]:
    """A row of fine-tuning."""
    turns = (("user", in_a_chat(puzzle)), ("assistant", puzzle.solution))
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def question(puzzle: Puzzle) -> dict[str, Any]:
    """A row of reinforcement learning and of evaluation."""
    answer = {"numbers": puzzle.numbers, "target": puzzle.target}
    return {"prompt": in_a_chat(puzzle), "answer": answer, "text": in_the_corpus(puzzle)}


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes a .jsonl file."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def main() -> None:
    """Writes all files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, default=Path("outputs/pretrain_to_rl/data"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--documents", type=int, default=100_000, help="of the corpus")
    parser.add_argument("--conversations", type=int, default=2_000, help="of fine-tuning")
    parser.add_argument("--questions", type=int, default=2_000, help="of reinforcement learning")
    parser.add_argument("--held_out", type=int, default=64, help="questions of evaluation")
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)

    def new(name: str, *, held_out: bool = False) -> Iterator[Puzzle]:
        # Each file has a generator of its own: none changes with the size of another.
        return distinct(puzzles(random.Random(f"{options.seed} {name}"), held_out=held_out))

    corpus = documents(random.Random(f"{options.seed} corpus"))
    held_out = list(islice(new("heldout", held_out=True), options.held_out))
    files = {
        "corpus": islice(corpus, options.documents),
        "conversations": map(conversation, islice(new("conversations"), options.conversations)),
        "train": map(question, islice(new("train"), options.questions)),
        "heldout": map(question, held_out),
        "heldout_conversations": map(conversation, held_out),
    }
    for name, rows in files.items():
        write(options.directory / f"{name}.jsonl", rows)
    print(f"corpus, conversations and questions are in {options.directory}")


if __name__ == "__main__":
    main()
