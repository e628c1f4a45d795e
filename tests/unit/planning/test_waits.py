"""Host waits: a reviewed table, so that a new `.item()` in a loop fails here with its line.

Reviewed are counts by file and phase. Numbers of lines change with every edit; the message of a
failing test has them.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import pytest
from dry_runs import GROUP_SIZE, WORKLOAD, phases_of, write_config

from megatron_resrl.planning.records import PhaseRecord

GROUPS = 1001
"""Of a step. A dry run counts a thousand times what a further group adds, and once what a step of
one group takes: of a line that waits 3005 times, 3 are of each further group and 5 of the first."""
MICRO_BATCHES = 2
"""Of a group."""
LAYERS = 4

PER_STEP = {
    "scoring": {
        "algorithms/correction.py": 4,
        "diagnostics/mismatch.py": 11,
        # Whether a log-probability is not finite; with experts, how many micro-batches there are.
        "platform/distributed.py": 2,
        "policy/finite.py": 1,
        "subspace/report.py": 1,
        "token_weighting/resrl.py": 1,
        "training/scoring.py": 1,
    },
    "subspace": {
        "subspace/collectors.py": 1,
        "subspace/krylov.py": 1,
        "subspace/stream.py": 2,
    },
    "update": {
        "platform/distributed.py": 2,
        # The norm of all gradients, of weights and of experts; whether they are finite.
        "policy/optimizer.py": 3,
        "training/updating.py": 1,
    },
    # Copies to pinned memory, for which the writing thread waits.
    "checkpoint": {},
}
"""Phase -> file -> waits of a step of one group, or fewer."""
PER_FURTHER_GROUP = {
    # Small groups are decomposed a few at a time; the solver reads its own status.
    "subspace": {"subspace/krylov.py": 1},
}
"""The same of each group more, in layouts without experts."""
EXPERTS_PER_LAYER = 3
"""Per micro-batch: megatron-core's dispatcher reads how many tokens each expert gets."""


@dataclass(frozen=True)
class Case:
    """A layout, and the rank of it that waits most."""

    settings: tuple[str, ...] = ()
    ranks: int = 1
    rank: int = 0
    experts: bool = False


CASES = {
    "dense": Case(),
    "packed": Case(("algorithm.sequence_packing=true",)),
    "tp2_sp": Case(("parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true"), 2),
    "pp2": Case(("parallel.pipeline_model_parallel_size=2",), 2, 1),
    "pp2_vpp2": Case(
        (
            "parallel.pipeline_model_parallel_size=2",
            "parallel.virtual_pipeline_model_parallel_size=2",
        ),
        2,
        1,
    ),
    "cp2_packed": Case(("parallel.context_parallel_size=2", "algorithm.sequence_packing=true"), 2),
    "ep2": Case(("parallel.expert_model_parallel_size=2",), 2, experts=True),
}


@pytest.fixture(scope="module")
def phases(tmp_path_factory):
    """phases(case) -> the phases of a step of `GROUPS` per replica."""
    folder = tmp_path_factory.mktemp("models")

    def found(case: Case) -> dict[str, PhaseRecord]:
        model = write_config(folder / str(case.experts), experts=case.experts)
        prompts = GROUPS * (case.ranks if case.experts else 1)
        return phases_of(
            model,
            *case.settings,
            f"rollout.prompts_per_step={prompts}",
            rank=case.rank,
            world_size=case.ranks,
        )

    return found


def of_first_and_further_groups(phase: PhaseRecord) -> tuple[Counter[str], Counter[str]]:
    """Line -> waits of the first group, and of each further one; a part of a wait counts as one."""
    more = GROUPS - 1
    further = Counter({w.line: math.ceil(w.count / more - 0.1) for w in phase.waits})
    first = {w.line: max(0, w.count - more * further[w.line]) for w in phase.waits}
    return Counter(first), further


def beyond(found: Counter[str], reviewed: dict[str, int]) -> list[str]:
    """Lines of the files that wait more often than has been reviewed."""
    by_file: Counter[str] = Counter()
    for line, count in found.items():
        by_file[line.partition(":")[0]] += count
    return [
        f"{line} waits {count} times; {reviewed.get(file, 0)} have been reviewed in its file"
        for line, count in sorted(found.items())
        if by_file[file := line.partition(":")[0]] > reviewed.get(file, 0) and count
    ]


@pytest.mark.parametrize("name", CASES)
def test_waits_of_a_step_are_those_reviewed(phases, name):
    case = CASES[name]
    found = phases(case)
    assert "update" in found
    for phase in PER_STEP.keys() & found.keys():
        first, further = of_first_and_further_groups(found[phase])
        per_group = Counter(PER_FURTHER_GROUP.get(phase, {}))
        if case.experts and phase != "subspace":
            per_group["policy/gpt.py"] = EXPERTS_PER_LAYER * LAYERS * MICRO_BATCHES
        assert beyond(further, per_group) == [], phase
        assert beyond(first, per_group + Counter(PER_STEP[phase])) == [], phase


def test_decoding_waits_once_per_token(phases):
    found = phases(CASES["dense"])["generation"]
    batches = GROUPS * GROUP_SIZE / 64
    tokens = WORKLOAD.response_tokens
    assert sum(wait.count for wait in found.waits) <= batches * (tokens + 3), found.waits


def test_beyond_names_the_line_that_waits_too_often():
    found = Counter({"a.py:3": 2, "a.py:9": 1, "b.py:1": 1})
    assert beyond(found, {"a.py": 3, "b.py": 1}) == []
    assert beyond(found, {"a.py": 2, "b.py": 1}) == [
        "a.py:3 waits 2 times; 2 have been reviewed in its file",
        "a.py:9 waits 1 times; 2 have been reviewed in its file",
    ]
