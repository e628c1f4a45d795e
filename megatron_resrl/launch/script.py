"""A job as a batch script: `job.sbatch.j2`, filled in."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from megatron_resrl.launch.array import Array
from megatron_resrl.launch.options import JobStage, LaunchOptions

TEMPLATE = Path(__file__).with_name("job.sbatch.j2")


@dataclass(frozen=True)
class Job:
    """One job of a chain."""

    command: str
    """Command line that made the script."""
    stage: JobStage
    recipe: str
    """File that the run reads."""
    settings: tuple[str, ...]
    """Command line behind the recipe."""
    output_dir: str
    options: LaunchOptions
    save_before: int
    """Seconds before the time limit at which the run is asked to save and end."""
    array: Array | None = None
    rollout_nodes: int = 0
    """Last nodes of the job, which only generate."""
    tensor_parallel: bool = False
    """Whether tensor-parallel ranks exchange activations."""
    time_budget: int | None = None
    """Seconds after which the run saves and ends by itself; None: the recipe's."""
    log_folder: str | None = None
    """Where the script's own output goes; None: to where it is submitted."""

    @property
    def name(self) -> str:
        """Of the job, as Slurm shows it."""
        return self.options.job_name or Path(self.output_dir).name


def render(job: Job) -> str:
    """The batch script of a job."""
    environment = jinja2.Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,
    )
    environment.filters["quoted"] = shlex.quote
    environment.filters["words"] = shlex.join
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(job=job, options=job.options, directives=list(_directives(job)))


def _directives(job: Job) -> Sequence[str]:
    """The options of sbatch, in order."""
    options = job.options
    of_task = job.array is not None
    log = "%x-%A_%a.log" if of_task else "%x-%j.log"
    if job.log_folder is not None:
        log = f"{job.log_folder.replace('%', '%%')}/{log}"
    tasks = options.ranks_on_node if options.tasks == "per_gpu" else 1
    given = [
        ("job-name", job.name),
        ("partition", options.partition),
        ("account", options.account),
        ("nodes", options.nodes),
        ("ntasks-per-node", tasks),
        ("gpus-per-node", options.gpus_per_node or None),
        ("cpus-per-task", options.cpus_per_node and max(1, options.cpus_per_node // tasks)),
        ("time", options.time),
        ("signal", f"B:USR1@{job.save_before}"),
        ("array", job.array.indices if job.array else None),
        ("exclude", options.exclude),
        ("dependency", f"afterok:{options.after}" if options.after else None),
        ("kill-on-invalid-dep", "yes" if options.after else None),
        ("output", log),
        ("open-mode", "append"),
    ]
    lines = [f"--{name}={_quoted(str(value))}" for name, value in given if value is not None]
    lines += [] if options.cpus_per_node else ["--exclusive", "--mem=0"]
    lines.append("--requeue" if options.requeue else "--no-requeue")
    return [*lines, *options.sbatch]


def _quoted(value: str) -> str:
    """A value as sbatch reads it in a script: blanks, quotes, backslashes and # have a meaning."""
    if not set(value) & set(" \t\"'\\#"):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
