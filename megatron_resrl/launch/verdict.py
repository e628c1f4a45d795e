"""Whether a job whose ranks have ended is done, is to run again, or has failed.

    python -m megatron_resrl.launch.verdict STAGE OUTPUT_DIR --status=N --logs=DIR --requeue=N

The batch script asks this when its step has ended, and requeues the job if the answer is `AGAIN`;
standard output then has the nodes to leave out. Needs no torch: the script runs it outside of the
step, and it decides from files alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from megatron_resrl.platform.places import Place
from megatron_resrl.platform.run_files import FINISHED, INTERRUPTED, newest_step

DONE, FAILED, AGAIN = 0, 1, 75
"""Answers, as exit statuses. 75 is EX_TEMPFAIL of sysexits.h."""

STATE = "requeues.json"
"""Below `<output_dir>/slurm/`: what earlier ends of the same job have left."""

_SIGNS_OF_HARDWARE = (
    *("uncorrectable", "ECC error", "fallen off the bus", "hardware"),
    *("no CUDA-capable device", "CUDA driver initialization failed"),
    *("Unable to determine the device handle", "NVLink"),
)
"""What CUDA and NCCL say of a device that is broken."""


@dataclass(frozen=True)
class End:
    """How the ranks of a job have ended."""

    stage: str
    status: int
    """Exit status of srun."""
    finished: bool
    """All steps are done, and the policy is exported."""
    interrupted: bool
    """A signal or the time budget ended the run, and its last step is saved."""
    step: int
    """Of the newest checkpoint."""
    reason: str = ""
    """What the rank said that failed first."""
    hopeless: bool = False
    """It said that the recipe or a file cannot be used: another start says the same."""
    broken_hosts: tuple[str, ...] = ()
    """Hosts that vanished, or whose device failed."""


@dataclass(frozen=True)
class History:
    """Ends of the same job before this one."""

    job: str = ""
    step: int = 0
    """Of the newest checkpoint then."""
    without_progress: int = 0
    """Ends in a row since which no checkpoint has been added."""
    excluded: tuple[str, ...] = ()
    """Hosts left out so far."""


class Verdict(NamedTuple):
    """What follows an end."""

    status: int
    sentence: str
    history: History


def judge(end: End, history: History, requeues: int, spare_nodes: int) -> Verdict:
    """Decides what follows the end of a job.

    Args:
        end: How its ranks ended.
        history: Of the same job.
        requeues: Ends without a new checkpoint that are borne; 0: the job is never run again.
        spare_nodes: Nodes of the partition beside those that the job needs; so many are left out
            at most.
    """
    progress = end.step > history.step
    without = 0 if progress else history.without_progress + 1
    broken = [host for host in end.broken_hosts if host not in history.excluded]
    excluded = (*history.excluded, *broken)[: max(spare_nodes, len(history.excluded))]
    new = History(history.job, max(end.step, history.step), without, excluded)
    why = f": {end.reason}" if end.reason else ""
    if end.status == 0 and (end.finished or end.stage == "eval"):
        return Verdict(DONE, "all steps are done", new)
    if end.interrupted and end.status in (0, 143):
        how = f"the run was asked to end and is saved after step {end.step}"
    else:
        how = f"the run ended with status {end.status} after the checkpoint of step {end.step}{why}"
    if end.hopeless:
        return Verdict(FAILED, f"{how}; another start would end alike", new)
    if requeues == 0:
        return Verdict(FAILED, f"{how}; submit it again to continue (--requeue does)", new)
    if without > requeues:
        return Verdict(
            FAILED, f"{how}; given up after {requeues} starts without a new checkpoint", new
        )
    times = f", start {without} of {requeues} without a new checkpoint" if without else ""
    out = f"; without {', '.join(excluded)}" if excluded else ""
    return Verdict(AGAIN, f"{how}; the job is requeued{times}{out}", new)


def read_end(stage: str, output_dir: Path, status: int, logs: Path) -> End:
    """How the ranks of a job have ended, from the files that they left."""
    failures = sorted(_failures(logs), key=lambda failure: failure["time"])
    first: Mapping[str, Any] = failures[0] if failures else {}
    place = first.get("place", {})
    said = str(first.get("message", "")).strip().splitlines()
    return End(
        stage=stage,
        status=status,
        finished=(output_dir / FINISHED).is_file(),
        interrupted=stage != "eval" and (output_dir / INTERRUPTED).is_file(),
        step=newest_step(output_dir),
        reason=f"{Place(**place)}: {said[0]}" if said and place else "",
        hopeless=first.get("kind") == "input",
        broken_hosts=tuple(dict.fromkeys(_broken_hosts(failures))),
    )


def _failures(logs: Path) -> Iterator[Mapping[str, Any]]:
    """What ranks that ended with an error have left, see `platform/ending.py: record_failure`."""
    for file in logs.rglob("error*.json"):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))["message"]
            yield {"message": content["message"], **content["extraInfo"]}
        except (OSError, ValueError, KeyError, TypeError):
            continue  # Another program's, or cut off with its rank.


def _broken_hosts(failures: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for failure in failures:
        yield from failure.get("lost_hosts", ())
        if any(sign in failure["message"] for sign in _SIGNS_OF_HARDWARE) and "place" in failure:
            yield failure["place"]["host"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Decides, writes the history down, and prints the nodes to leave out."""
    parser = argparse.ArgumentParser(prog="python -m megatron_resrl.launch.verdict")
    parser.add_argument("stage")
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--status", type=int, required=True, help="exit status of srun")
    parser.add_argument("--logs", type=Path, required=True, help="folder that the ranks logged to")
    parser.add_argument("--requeue", type=int, default=0, help="starts without a new checkpoint")
    parser.add_argument("--spare", type=int, default=0, help="nodes that the job does not need")
    parser.add_argument("--exclude", default="", help="nodes that the user leaves out")
    given = parser.parse_args(arguments)
    job = os.environ.get("SLURM_JOB_ID", "")
    file = given.output_dir / "slurm" / STATE
    end = read_end(given.stage, given.output_dir, given.status, given.logs)
    status, sentence, history = judge(end, _read(file, job), given.requeue, given.spare)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(history)) + "\n", encoding="utf-8")
    except OSError as error:
        sentence += f"; but {file} cannot be written: {error.strerror}"
        status = DONE if status == DONE else FAILED
    print(f"job {job}: {sentence}", file=sys.stderr)
    if status == AGAIN and history.excluded:
        print(",".join(filter(None, (given.exclude, *history.excluded))))
    return status


def _read(file: Path, job: str) -> History:
    """The history of a job; a new one for a job that is run for the first time."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        history = History(**found | {"excluded": tuple(found["excluded"])})
    except (OSError, ValueError, KeyError, TypeError):
        return History(job)
    return history if history.job == job else History(job)


if __name__ == "__main__":
    sys.exit(main())
