"""Which ranks are measured with which, and when: pairs of one round share no rank."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

Pair = tuple[int, int]

ALL_PAIRS = 16
"""Ranks up to which every pair is measured."""
MOST_ROUNDS = 16
"""Half of them within hosts, half between hosts, where there are more ranks."""


def rounds_of(hosts: Sequence[str]) -> list[list[Pair]]:
    """Rounds of pairs, lower rank first.

    Up to `ALL_PAIRS` ranks, all pairs. Of more, a sample in which every rank is measured with ranks
    of its host and with its counterparts on other hosts, as neighbours of data and pipeline
    parallelism are.

    Args:
        hosts: Host of each rank.
    """
    if len(hosts) <= ALL_PAIRS:
        return [pairs for pairs in tournament(range(len(hosts))) if pairs]
    members: dict[str, list[int]] = {}
    for rank, host in enumerate(hosts):
        members.setdefault(host, []).append(rank)
    within = _together([_sampled(list(tournament(ranks))) for ranks in members.values()])
    names = list(members)
    between = [
        [
            (min(pair), max(pair))
            for one, other in meetings
            for pair in zip(members[names[one]], members[names[other]], strict=False)
        ]
        for meetings in _sampled(list(tournament(range(len(names)))))
    ]
    return [pairs for pairs in [*within, *between] if pairs]


def tournament(players: Sequence[int]) -> Iterator[list[Pair]]:
    """Every pair once, in rounds in which each player meets one other (the circle method)."""
    ring: list[int | None] = [*players, *([None] if len(players) % 2 else [])]
    for _ in range(len(ring) - 1):
        halves = zip(ring[: len(ring) // 2], reversed(ring[len(ring) // 2 :]), strict=True)
        yield [(min(a, b), max(a, b)) for a, b in halves if a is not None and b is not None]
        ring = [ring[0], ring[-1], *ring[1:-1]]


def _sampled(rounds: list[list[Pair]]) -> list[list[Pair]]:
    """Some of the rounds, evenly spread."""
    step = math.ceil(2 * len(rounds) / MOST_ROUNDS)
    return rounds[:: max(1, step)]


def _together(schedules: list[list[list[Pair]]]) -> list[list[Pair]]:
    """Round i of every schedule at the same time."""
    length = max(map(len, schedules), default=0)
    return [
        [pair for schedule in schedules for pair in (schedule[i] if i < len(schedule) else [])]
        for i in range(length)
    ]
