"""The acceptance test of a machine with a GPU, rehearsed on this CPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from ranks import REPOSITORY
from te_on_cpu.suite import needs_engine

pytestmark = needs_engine

LINE = re.compile(r"(ok|FAILED|not run|noted) +([a-z0-9_]+)/(\S+)(  .+)?  [0-9.]+ s")


@pytest.mark.parametrize(
    "sections",
    [
        {"local": 80, "engine": 70, "transport": 8},
        pytest.param(
            {
                "facts": 1,
                "resume_local": 5,
                "resume_engine": 5,
                "subspace": 4,
                "fp8": 20,
                "waits": 3,
                "memory": 0,
                "speed": 1,
            },
            marks=pytest.mark.slow,
        ),
    ],
    ids=["default", "slow"],
)
def test_acceptance_rehearsal_passes(tmp_path: Path, sections: dict[str, int]) -> None:
    command = ["bash", "tools/gpu_acceptance.sh", "--rehearse", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--sections", ",".join(sections)],
        capture_output=True,
        text=True,
        timeout=1800,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHON": sys.executable},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    checks = [json.loads(line) for line in (tmp_path / "results.json").open()]
    right = Counter(check["section"] for check in checks if check["status"] == "ok")
    # At least as many as were there when this was written.
    assert {name: min(right[name], count) for name, count in sections.items()} == sections
    printed = [LINE.fullmatch(line) for line in done.stdout.splitlines()]
    assert [(match[2], match[3]) for match in printed if match] == [
        (check["section"], check["name"]) for check in checks
    ]
    for name in sections:
        assert f"# {name}: not rehearsed: " in done.stdout
    assert re.search(r"^\d+ ok, 0 failed, \d+ not run; ", done.stdout, re.MULTILINE)
