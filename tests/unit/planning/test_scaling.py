"""Counts of a whole step from those of few groups."""

from megatron_resrl.planning.records import Holder, PhaseRecord, Traffic, Wait
from megatron_resrl.planning.scaling import combined, extrapolated, with_more_activations


def phase(groups: int, *, fixed: int = 3) -> PhaseRecord:
    """What is counted is `fixed` and as much for each group; memory does not count."""
    count = fixed * (1 + groups)
    return PhaseRecord(
        name="update",
        start_bytes=1,
        peak_bytes=10 + groups,
        peak_by_kind={"weights": 10},
        holders=(Holder("a.py:1", "weights", 10),),
        traffic=(Traffic("tensor", 8, "all_gather", count, 100 * count),),
        waits=(Wait("a.py:2", count),),
        matrix_flops={"bfloat16": 1000 * count},
        touched_bytes=20 * count,
        host_copy_bytes=2 * count,
        kernels=count,
    )


def test_extrapolated_counts_grow_by_as_much_per_group():
    many = extrapolated(phase(1), phase(3), few=1, many=3, wanted=7)
    assert many == PhaseRecord(**{**vars(phase(7)), "peak_bytes": phase(3).peak_bytes})


def test_extrapolated_to_the_same_groups_changes_nothing():
    assert extrapolated(phase(1), phase(2), few=1, many=2, wanted=2) == phase(2)


def test_extrapolated_from_one_size_is_in_proportion():
    found = extrapolated(phase(1), phase(1), few=1, many=1, wanted=5)
    assert found.kernels == 5 * phase(1).kernels


def test_more_activations_are_part_of_the_peak():
    found = with_more_activations(phase(1), 7)
    assert (found.peak_bytes, found.peak_by_kind) == (18, {"weights": 10, "activations": 7})
    assert with_more_activations(phase(1), 0) == phase(1)


def test_combined_adds_lines_that_only_one_has():
    other = PhaseRecord(**{**vars(phase(1)), "waits": (Wait("b.py:9", 1),)})
    waits = combined([(phase(1), 2), (other, 3)], like=other).waits
    assert waits == (Wait("a.py:2", 12), Wait("b.py:9", 3))
