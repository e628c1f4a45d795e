"""Runs the acceptance test of a machine with one GPU: tests/gpu, section by section.

    tools/gpu_acceptance.sh [--from FOLDER] [--out FOLDER] [--sections a,b] [--limit SECONDS]
    tools/gpu_acceptance.sh --rehearse
    tools/gpu_acceptance.sh --pack FOLDER [--engine BUNDLE.tar.xz]

Every section is a process of its own with its own limit of time, so that a crash or a hang costs
only that section. Its checks are lines of JSON in OUT/results.json as soon as they are known, and
lines of text here:

    ok|FAILED|not run|noted  SECTION/CHECK  VALUE  (LIMIT)  SECONDS

At the end come the ends of the logs of sections that failed, the table of timings, and
`N ok, M failed, K not run`. Exit status: 0 nothing failed, 1 a check failed or none was made, 2 it
could not start.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_acceptance_files import CannotPack, install, pack

REPOSITORY = Path(__file__).resolve().parents[1]
TESTS = REPOSITORY / "tests"
NEEDED = (
    "torch",
    "transformers",
    "megatron",
    "mbridge",
    "pytest",
    "hypothesis",
    "pyarrow",
    "psutil",
)
"""Python modules without which no section runs."""
REHEARSAL = 8
"""Times as long as on a GPU: a CPU that does other things, too."""
LOG_LINES = 30
"""Of a failed section, printed at the end."""


@dataclass(frozen=True)
class Section:
    """Test files that one process runs."""

    name: str
    files: tuple[str, ...]
    """Below tests/gpu."""
    engine: bool
    """On Transformer Engine's layers; otherwise it is hidden."""
    limit_s: float
    """Seconds on a GPU; a rehearsal has `REHEARSAL` times as many."""
    not_rehearsed: str
    """What a rehearsal does not show."""


MODEL_FILES = ("test_parity.py", "test_packed.py", "test_decode.py")
SECTIONS = (
    Section("facts", ("test_facts.py",), True, 45, "the driver and the device"),
    Section("local", MODEL_FILES, False, 100, "CUDA's kernels: the numbers are a CPU's"),
    Section(
        "engine",
        (*MODEL_FILES, "test_emulation.py"),
        True,
        140,
        "Transformer Engine's kernels: the emulation is compared with itself",
    ),
    Section("resume_local", ("test_resume.py",), False, 90, "the same bits from CUDA's kernels"),
    Section(
        "resume_engine", ("test_resume.py",), True, 90, "the same bits from the engine's kernels"
    ),
    Section(
        "transport",
        ("test_collectives.py", "test_weight_sync.py", "test_hang.py"),
        False,
        60,
        "NCCL (gloo and a double of its C functions take its place), CUDA IPC, a stuck kernel",
    ),
    Section(
        "subspace", ("test_subspace.py",), False, 45, "a device: a CPU is compared with itself"
    ),
    Section("fp8", ("test_fp8.py",), True, 60, "the engine's kernels; block scaling"),
    Section(
        "waits",
        ("test_waits.py",),
        False,
        60,
        "waits of the host: the dry run that foretells them, and the step, are run",
    ),
    Section(
        "memory",
        ("test_memory.py",),
        False,
        150,
        "memory of a device: the dry run that foretells it, and the step, are run",
    ),
    Section("speed", ("test_speed.py",), True, 150, "speed: a tiny model shows that it runs"),
)


def main() -> int:
    """Returns the exit status."""
    options = _parser().parse_args()
    try:
        if options.pack:
            print(pack(options.pack, options.engine, REPOSITORY / "constraints.txt"))
            return 0
        options.out.mkdir(parents=True, exist_ok=True)
        libraries = []
        if options.source:
            libraries = install(options.source, options.out / "libraries")
        sections = _chosen(options.sections)
    except (CannotPack, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    sys.path[:0] = map(str, libraries)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"Python modules {', '.join(missing)} are missing in {sys.executable}; install "
            "them, or give --from FOLDER with what --pack has put there",
            file=sys.stderr,
        )
        return 2
    limit = options.limit * (REHEARSAL if options.rehearse else 1)
    run = Run(options.out, libraries, options.rehearse, time.monotonic() + limit)
    for section in sections:
        run.section(section)
    return run.report()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--pack",
        type=Path,
        metavar="FOLDER",
        help="collect what a machine without a network needs, and end",
    )
    parser.add_argument(
        "--engine",
        type=Path,
        metavar="BUNDLE",
        help="with --pack: a .tar.xz of "
        "built Transformer Engine, whose folders are Python packages",
    )
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="FOLDER",
        help="install from what --pack has collected",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("outputs/gpu_acceptance"),
        help="folder of results.json and logs",
    )
    parser.add_argument(
        "--sections",
        default="",
        metavar="A,B",
        help="only these: " + ", ".join(section.name for section in SECTIONS),
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=480.0,
        metavar="SECONDS",
        help="of all sections together; what would begin later is not run (default 480)",
    )
    parser.add_argument("--rehearse", action="store_true", help="run everything on a CPU")
    return parser


def _chosen(names: str) -> list[Section]:
    known = {section.name: section for section in SECTIONS}
    wanted = [name for name in names.split(",") if name]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"--sections {','.join(unknown)}: sections are {', '.join(known)}")
    return [known[name] for name in wanted] if wanted else list(SECTIONS)


class Run:
    """The sections that have been run, and their results."""

    def __init__(
        self, out: Path, libraries: Sequence[Path], rehearsed: bool, deadline: float
    ) -> None:
        """
        Args:
            out: Folder of results and logs.
            libraries: Folders of unpacked Python packages.
            rehearsed: On a CPU.
            deadline: On the monotonic clock.
        """
        self.rehearsed = rehearsed
        self.deadline = deadline
        self.file = out / "results.json"
        self.file.write_text("")
        self._out = out
        self._libraries = libraries
        self._printed = 0

    def section(self, section: Section) -> None:
        """Runs a section to its end, or to the end of its time."""
        if self.rehearsed:
            print(f"# {section.name}: not rehearsed: {section.not_rehearsed}", flush=True)
        reason = self._cannot_run(section)
        if reason:
            self._add(section, "section", "not run", reason)
            return
        limit = section.limit_s * (REHEARSAL if self.rehearsed else 1)
        limit = min(limit, self.deadline - time.monotonic())
        started = time.monotonic()
        with self.log(section).open("w") as log:
            process = subprocess.Popen(
                self._command(section),
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
                env=self._environment(section),
                start_new_session=True,
            )
            while process.poll() is None and time.monotonic() < started + limit:
                self._print_new()
                time.sleep(0.1)
            in_time = process.poll() is not None
            if not in_time:
                _kill_with_children(process)
        # A killed process may have written half a line.
        self.file.write_text(self._complete_lines())
        self._print_new()
        failed = any(each["status"] == "FAILED" for each in self._checks(section))
        if not in_time:
            self._add(section, "time", "FAILED", f"ended after {limit:.0f} s")
        elif process.returncode and not failed:
            self._add(section, "process", "FAILED", f"ended with status {process.returncode}")
        self._add(section, "seconds", "noted", round(time.monotonic() - started, 1))

    def report(self) -> int:
        """Prints what is left to say; returns the exit status."""
        checks = self._lines()
        failed = dict.fromkeys(each["section"] for each in checks if each["status"] == "FAILED")
        for name in failed:
            print(f"\n# end of {self._out / name}.log")
            log = self._out / f"{name}.log"
            text = log.read_text(errors="replace") if log.exists() else ""
            print("\n".join(text.splitlines()[-LOG_LINES:]))
        print("\n# timings" + (" of a rehearsal, which say nothing of a GPU" * self.rehearsed))
        for each in checks:
            timing = each["section"] == "speed" or each["name"] == "seconds"
            if timing and each["status"] == "noted":
                name = f"{each['section']}/{each['name']}"
                print(f"{name:<60} {_short(each['value']):>10}  {each['limit']}")
        counts = {
            status: sum(each["status"] == status for each in checks)
            for status in ("ok", "FAILED", "not run")
        }
        print(
            f"\n{counts['ok']} ok, {counts['FAILED']} failed, {counts['not run']} not run; "
            f"{self.file}"
        )
        return 1 if failed or not counts["ok"] else 0

    def log(self, section: Section) -> Path:
        """What the section's process prints."""
        return self._out / f"{section.name}.log"

    def _cannot_run(self, section: Section) -> str | None:
        if time.monotonic() >= self.deadline:
            return "the time of --limit is used up"
        folder = REPOSITORY / ".te"
        if not section.engine:
            return None
        if self.rehearsed and not (folder / "transformer_engine").is_dir():
            return f"no Transformer Engine in {folder}: tools/install.sh te-on-cpu"
        installed = importlib.util.find_spec("transformer_engine") is not None
        if not self.rehearsed and not installed and section.name != "facts":
            return "Transformer Engine is not installed"
        return None

    def _command(self, section: Section) -> list[str]:
        files = [str(TESTS / "gpu" / file) for file in section.files]
        options = ["-v", "--tb=short", "-W", "ignore", "-p", "no:cacheprovider"]
        options += ["--results", str(self.file.resolve()), "--section", section.name]
        options += ["--rehearse"] if self.rehearsed else []
        return [sys.executable, "-m", "pytest", *options, *files]

    def _environment(self, section: Section) -> dict[str, str]:
        environment = dict(os.environ, PYTHONUNBUFFERED="1")
        # In front of all others what chooses the layers.
        first = TESTS / "gpu" / "without_engine"
        if section.engine:
            first = TESTS / "te_on_cpu" / "site" if self.rehearsed else TESTS
        path = [first, REPOSITORY, TESTS, *self._libraries, environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(str(each) for each in path if str(each))
        if self.rehearsed:
            environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
            if section.engine:
                environment["TE_ON_CPU"] = str(REPOSITORY / ".te")
        return environment

    def _add(self, section: Section, name: str, status: str, value: Any) -> None:
        line = {"section": section.name, "name": name, "status": status, "value": value}
        with self.file.open("a") as file:
            file.write(json.dumps(line | {"limit": "", "seconds": 0.0}) + "\n")
        self._print_new()

    def _print_new(self) -> None:
        lines = self._lines()
        for each in lines[self._printed :]:
            print(_as_text(each), flush=True)
        self._printed = len(lines)

    def _checks(self, section: Section) -> Iterator[dict[str, Any]]:
        return (each for each in self._lines() if each["section"] == section.name)

    def _lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._complete_lines().splitlines()]

    def _complete_lines(self) -> str:
        """The results without a last line that is half written."""
        text = self.file.read_text()
        return text[: text.rfind("\n") + 1]


def _as_text(check: dict[str, Any]) -> str:
    value = check["value"]
    words = [f"{check['status']:<8}", f"{check['section']}/{check['name']}"]
    words += [_short(value)] * (value is not None)
    words += [f"({check['limit']})"] * bool(check["limit"])
    return "  ".join([*words, f"{check['seconds']:.1f} s"])


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _kill_with_children(process: subprocess.Popen[bytes]) -> None:
    """Also children with sessions of their own."""
    import psutil  # Among the unpacked packages.

    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    for child in children:
        child.kill()
    process.wait()


if __name__ == "__main__":
    sys.exit(main())
