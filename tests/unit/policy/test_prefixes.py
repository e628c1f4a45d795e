"""Which sequences share a prefix."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_resrl.policy.batches import padded
from megatron_resrl.policy.prefixes import FedLength, rows_that_begin_alike, with_prefixes

Rows = list[list[int]]


def found(rows: Rows, multiple: int = 1) -> list[FedLength]:
    """All tokens of the rows are fed."""
    ids, fed = padded([torch.tensor(row) for row in rows], torch.int64), [len(row) for row in rows]
    return with_prefixes(ids, rows_that_begin_alike(ids, fed, multiple), fed, multiple)


def saved(lengths: list[FedLength]) -> int:
    """Tokens that are not fed again."""
    prefixes = {length.prefix: length.shared for length in lengths if length.shared}
    return sum(length.shared for length in lengths) - sum(prefixes.values())


def cut_into_runs(rows: Rows) -> Iterator[list[Rows]]:
    """All ways to cut rows into runs of neighbours."""
    for chosen in itertools.product([False, True], repeat=max(0, len(rows) - 1)):
        cuts = [0, *(place for place, cut in enumerate(chosen, start=1) if cut), len(rows)]
        yield [rows[start:end] for start, end in itertools.pairwise(cuts)]


def saved_in(group: Rows, multiple: int) -> int:
    """Tokens that rows with one prefix save; each keeps a token of its own."""
    columns = list(zip(*(row[:-1] for row in group), strict=False))
    alike = next((n for n, each in enumerate(columns) if len(set(each)) > 1), len(columns))
    return (len(group) - 1) * (alike // multiple * multiple)


@given(
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=7), max_size=6),
    st.sampled_from([1, 2]),
)
def test_rows_that_begin_alike_save_as_much_as_any_runs(rows, multiple):
    runs = cut_into_runs(sorted(rows))
    best = max(sum(saved_in(group, multiple) for group in groups) for groups in runs)
    assert saved(found(rows, multiple)) == best


def test_rows_that_begin_alike_are_told_apart_by_what_saves_most():
    system, one, other = [1, 2, 3, 4], [5, 6, 7, 8, 9, 9, 9, 9, 9, 9], [6, 6]
    rows = [[*system, *one, 3], [*system, *other, 4], [*system, *one, 5], [*system, *other, 6]]
    assert [(each.prefix, each.shared) for each in found(rows)] == [(1, 14), (0, 6)] * 2
    # Three system messages are more than one longer beginning.
    assert {each.shared for each in found([[*system, end] for end in (5, 6, 7)])} == {4}
    assert [each.shared for each in found([[1, 2], [3, 4]])] == [0, 0]
