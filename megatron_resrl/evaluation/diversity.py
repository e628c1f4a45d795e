"""How much the responses to one question differ from each other."""

from __future__ import annotations

from collections.abc import Sequence

NGRAMS = (1, 2, 4)
"""The n of distinct-n in evaluations."""


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different word n-grams over all word n-grams of some texts; words end at white space.

    Returns:
        A share; 0 where no text has n words.

    Source: Li et al. 2016, arXiv 1510.03055, section 5.2.
    """
    grams = [
        tuple(words[start : start + n])
        for words in map(str.split, texts)
        for start in range(len(words) - n + 1)
    ]
    return len(set(grams)) / len(grams) if grams else 0.0


def distinct_answers(answers: Sequence[str]) -> int:
    """Number of different answers; responses without one (empty) do not count."""
    return len({answer for answer in answers if answer})
