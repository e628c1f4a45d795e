"""The command `doctor` on one rank."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading

from megatron_resrl.config.schema import RunSettings
from megatron_resrl.doctor.examination import Examination, examine, longest_s
from megatron_resrl.doctor.finding import Finding
from megatron_resrl.doctor.judgement import judge
from megatron_resrl.doctor.meeting import Meeting, RankZeroAbsent, alone, join
from megatron_resrl.doctor.needs import Needs, needs_of, with_sizes
from megatron_resrl.doctor.options import DoctorOptions
from megatron_resrl.doctor.processes import NoAnswer, within
from megatron_resrl.doctor.report import as_json, report
from megatron_resrl.errors import RunError
from megatron_resrl.platform.ending import end_process
from megatron_resrl.platform.launch import rank_variables, require_meeting_place

WRONG = 1
"""Exit status, on all ranks, where something is wrong."""

_FILES_S = 60.0
"""Seconds to read the model's config.json."""
_ENDING_S = 60.0
"""Seconds for the status to reach the other ranks, and for their thanks to come back."""


_STUCK = (
    "the job's store, on the host of rank 0, does not answer; see that host, and run the command "
    "on each host alone"
)


def run_doctor(recipe: RunSettings | None, options: DoctorOptions) -> int:
    """Examines this rank and, on rank 0, prints what was found on all ranks.

    Args:
        recipe: Whose needs the machines are held against; None: there is none.
        options: What is wanted.

    Returns:
        Exit status: 0, or `WRONG`.

    Raises:
        InputError: The launcher's variables cannot be used.
        RankZeroAbsent: Rank 0 did not come, or does not answer any more.
    """
    os.environ |= rank_variables(os.environ)
    require_meeting_place(os.environ)
    watch = threading.Timer(longest_s(options), end_process, [RankZeroAbsent(_STUCK)])
    watch.daemon = True
    watch.start()
    try:
        return _examined(_meeting(options), recipe, options)
    finally:
        watch.cancel()


def _needs(recipe: RunSettings | None, options: DoctorOptions) -> Needs:
    # torch may not be importable, or hang.
    has_cuda = os.path.exists("/dev/nvidiactl")
    needs = Needs() if recipe is None else needs_of(recipe, sys.executable, has_cuda=has_cuda)
    if options.output_dir is not None:
        needs = dataclasses.replace(needs, output_dir=options.output_dir)
    return needs


def _sizes(
    needs: Needs, recipe: RunSettings | None, examination: Examination
) -> tuple[Needs, list[Finding]]:
    """The needs with sizes, where the output folder answers and the model can be read."""
    if recipe is None or any(each.folder.failure for each in examination.hosts.values()):
        return needs, []
    try:
        sized, problems = within(_FILES_S, lambda: with_sizes(needs, recipe, examination.size))
    except NoAnswer as silence:
        return needs, [
            Finding(
                "recipe.model",
                "",
                f"model.path = {recipe.model.path!r} or output_dir cannot be read ({silence})",
                "see the file systems of both",
            )
        ]
    return sized, [
        Finding("recipe.model", "", f"{each.setting} = {each.value!r}: {each.problem}", each.fix)
        for each in problems
    ]


def _meeting(options: DoctorOptions) -> Meeting:
    if "RANK" not in os.environ:
        return alone()
    try:
        return join(os.environ, options.wait)
    except (ImportError, OSError) as error:
        raise RunError(
            f"torch cannot be imported, so that ranks cannot meet ({error}); run the command "
            "without a launcher on this host, which examines the host alone"
        ) from error


def _examined(meeting: Meeting, recipe: RunSettings | None, options: DoctorOptions) -> int:
    needs = _needs(recipe, options)
    examination = examine(meeting, options, needs)
    if examination is None:
        status = meeting.read("status", longest_s(options))
        meeting.write_own("thanks", True)
        if status is None:
            raise RankZeroAbsent(_STUCK)
        return int(status)
    needs, of_recipe = _sizes(needs, recipe, examination)
    findings = judge(examination, needs, of_recipe)
    if options.json:
        print(json.dumps(as_json(examination, findings), indent=1), flush=True)
    else:
        print("\n".join(report(examination, findings)), flush=True)
    status = WRONG if any(each.severity == "wrong" for each in findings) else 0
    meeting.write("status", status)
    # The store may end with this process.
    meeting.collect("thanks", [rank for rank in examination.ranks if rank], _ENDING_S)
    return status
