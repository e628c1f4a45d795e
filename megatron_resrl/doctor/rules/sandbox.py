"""Rules on where programs of the reward `code` run."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_resrl.doctor.facts.sandbox import SandboxFacts
from megatron_resrl.doctor.finding import Finding


def judge_sandbox(facts: SandboxFacts) -> Iterator[Finding]:
    """One host.

    Args:
        facts: Of its sandboxes.
    """
    if facts.backend is None:
        problem = f"programs of the reward code cannot run: {facts.problem}"
        yield Finding("sandbox.missing", "", problem, facts.remedy)
    elif facts.backend == "landlock" and (why := facts.lacking.get("bubblewrap")):
        problem = f"programs run under Landlock, without files and threads ({why})"
        remedy = "install bubblewrap and allow user namespaces, if programs need them"
        yield Finding("sandbox.landlock", "", problem, remedy, "note")
