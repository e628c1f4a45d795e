"""Puzzles whose solution is written out in steps: make a target from given numbers.

`3*7=21; 21-4=17` makes 17 from 3, 4 and 7. Each step takes two of the numbers that are left and
puts their result in their place; each number is used at most once. Most puzzles have several
solutions.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

LARGEST = 50
"""No result of a step is larger, so that every number has at most two digits."""
HELD_OUT_SHARE = 0.1
"""Of all puzzles, which no stage learns from."""
SEPARATOR = "; "
"""Between two steps."""


@dataclass(frozen=True)
class Level:
    """One difficulty.

    Attributes:
        count: Given numbers.
        highest: The largest of them; the smallest is 1.
        operations: Characters of `+-*`.
    """

    count: int
    highest: int
    operations: str


LEVELS = (
    Level(2, 25, "+-*"),
    Level(3, 9, "+-"),
    Level(3, 12, "+-*"),
    Level(4, 9, "+-*"),
)
"""From easy to hard; all occur equally often."""


@dataclass(frozen=True)
class Puzzle:
    """Numbers, the target, and one of its solutions."""

    numbers: tuple[int, ...]
    target: int
    solution: str

    @property
    def held_out(self) -> bool:
        """Whether the puzzle is kept for evaluation: a property of the target and of the numbers in
        any order, so that no solution and no other order of a held-out puzzle is ever learned."""
        key = f"{sorted(self.numbers)} {self.target}".encode()
        digest = hashlib.blake2b(key, digest_size=4).digest()
        return int.from_bytes(digest, "big") < HELD_OUT_SHARE * 2**32


def make_puzzle(generator: random.Random, level: Level) -> Puzzle:
    """A random puzzle and the solution that it was made from, which uses all numbers."""
    while True:
        numbers = tuple(generator.randint(1, level.highest) for _ in range(level.count))
        left, steps = list(numbers), []
        while len(left) > 1:
            generator.shuffle(left)
            first, second = left.pop(), left.pop()
            operation = generator.choice(level.operations)
            if operation == "-" and first < second:
                first, second = second, first
            result = apply(first, operation, second)
            if not 0 < result <= LARGEST:
                break
            steps.append(f"{first}{operation}{second}={result}")
            left.append(result)
        # A target that is one of the numbers needs no step.
        if len(left) == 1 and len(steps) == level.count - 1 and left[0] not in numbers:
            return Puzzle(numbers, left[0], SEPARATOR.join(steps))


def apply(first: int, operation: str, second: int) -> int:
    """The result of a step."""
    match operation:
        case "+":
            return first + second
        case "-":
            return first - second
        case "*":
            return first * second
    raise ValueError(f"{operation!r} is none of + - *")
