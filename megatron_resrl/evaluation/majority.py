"""The vote of several responses: how often the answer that most of them give is right."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence


def consensus_at_k(answers: Sequence[str], correct: Sequence[bool], k: int) -> float:
    """Estimates the probability that the answer of most of k samples is right, without bias.

    The mean over all k-subsets of the samples, of which each is judged by its most frequent answer;
    answers that are equally frequent share the verdict. A response without an answer does not vote;
    a subset without a vote is wrong. For k = n that is the vote of all samples.

    For each answer and each number x of its votes, the subsets are counted in which no other answer
    has more votes, by how many others have as many: coefficients of products of polynomials.

    Args:
        answers: [n samples]; empty: the response has none.
        correct: [n samples]. Samples with one answer may differ, e.g. because one was not graded
            in time; the answer then counts by its share of correct samples.
        k: From 1 to n.

    Raises:
        ValueError: k is out of range.

    Source: self-consistency, Wang et al. 2023, arXiv 2203.11171; over subsets as in pass@k.
    """
    total = len(answers)
    if not 1 <= k <= total:
        raise ValueError(f"cons@{k} of {total} samples: give a k from 1 to {total}")
    votes = Counter(answer for answer in answers if answer)
    right = Counter(
        answer for answer, good in zip(answers, correct, strict=True) if answer and good
    )
    silent = total - votes.total()
    won = 0.0
    for answer in right:
        others = [count for other, count in votes.items() if other != answer]
        share = right[answer] / votes[answer]
        won += share * _wins(votes[answer], others, silent, k) / math.comb(total, k)
    return won


def _wins(own: int, others: Sequence[int], silent: int, k: int) -> float:
    """In how many k-subsets an answer wins; one in which it ties with t others counts 1 / (t + 1).

    Args:
        own: Samples with this answer.
        others: Samples with each other answer.
        silent: Samples without an answer.
        k: Size of a subset.
    """
    wins = 0.0
    for own_votes in range(1, min(own, k) + 1):
        # (samples drawn beside its own, answers with as many votes) -> number of choices.
        ways = {(drawn, 0): math.comb(silent, drawn) for drawn in range(min(silent, k) + 1)}
        for count in others:
            ways = _with_answer(ways, count, own_votes, k - own_votes)
        left = {ties: number for (drawn, ties), number in ways.items() if drawn == k - own_votes}
        chosen = math.comb(own, own_votes)
        wins += sum(chosen * number / (ties + 1) for ties, number in left.items())
    return wins


def _with_answer(
    ways: dict[tuple[int, int], int], count: int, most: int, room: int
) -> dict[tuple[int, int], int]:
    """The choices with those of another answer, which has at most `most` votes."""
    found: Counter[tuple[int, int]] = Counter()
    for (drawn, ties), number in ways.items():
        for more in range(min(count, most, room - drawn) + 1):
            found[drawn + more, ties + (more == most)] += number * math.comb(count, more)
    return found
