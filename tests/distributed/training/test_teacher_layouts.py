"""A teacher teaches the same in every layout, from a folder and from a server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_families as tiny
from answering import answering
from ranks import run_ranks
from teaching import serving, write_teacher

LAYOUTS = ("one", "TP2+SP", "PP2", "CP2", "DP2")
COMPARED = (
    *("loss", "grad_norm", "approx_kl", "distillation/reverse_kl"),
    *("reference/kl", "reference/loss"),
)


@pytest.mark.slow
def test_teacher_gives_the_same_steps_in_every_layout(tmp_path):
    policy = tiny.write_families(tmp_path, ["qwen3"])["qwen3"]
    teacher = write_teacher(policy, tmp_path / "teacher")
    script, found = Path(__file__).with_name("ranks_teacher.py"), {}
    with answering(serving(tiny.read_model(teacher))) as url:
        for ranks in (1, 2):
            out = run_ranks(script, ranks, policy, teacher, f"{url}/v1")
            for line in out.splitlines():
                if line.startswith('{"layout"'):
                    case = json.loads(line)
                    found[case["layout"], case["teacher"]] = case["steps"]
    assert set(found) == {(layout, kind) for layout in LAYOUTS for kind in ("path", "url")}
    expected = found["one", "path"]
    assert expected[1]["reference/kl"] > 1e-5
    for case, steps in found.items():
        for number, (step, same) in enumerate(zip(steps, expected, strict=True), start=1):
            for name in COMPARED:
                # fp32 sums in another order, four updates deep.
                assert step[name] == pytest.approx(same[name], rel=1e-3, abs=1e-5), (
                    f"{case}, step {number}: {name}"
                )
