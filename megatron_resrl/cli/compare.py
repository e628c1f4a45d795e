"""The command `compare`. Its work is in `comparison/`."""

from __future__ import annotations

import json

from megatron_resrl.cli.command import CliCommand
from megatron_resrl.errors import InputError, closest

_OPTIONS = ("--metric", "--sets", "--seed", "--plot", "--json")
_HELP = """\
usage: megatron-resrl compare BASELINE OTHER [OTHER ...] [--metric NAME] [--sets A,B]
                              [--plot FILE] [--json]

Compares evaluations of several arms with that of the first, question by question: differences,
intervals over questions and seeds together, p-values corrected for several arms (Holm), the
smallest difference that the data would have shown (power 80 %), budgets that differ, and training
questions in the evaluation.

  BASELINE, OTHER  [NAME=]DIR[,DIR ...]: output directories of `eval` or of training runs; several
                   are runs of one arm with different seeds. Of a training run its last evaluation
                   counts, or that of RUN/evaluation/step_000100.
  --metric NAME    avg (the mean score), pass@K, pass^K or cons@K
  --sets A,B       only these sets
  --seed N         of the resamples (0)
  --plot FILE      differences and intervals as a picture (extra `plot`)
  --json           one JSON object
"""


def _compare(first: str | None, arguments: list[str]) -> int:
    arms, options = _options(([first] if first else []) + arguments)
    from megatron_resrl.comparison.arms import read_arms
    from megatron_resrl.comparison.compare import compare
    from megatron_resrl.comparison.report import comparison_text

    sets = [name for name in options.get("--sets", "").split(",") if name]
    seed = options.get("--seed", "0")
    if not seed.isdecimal():
        raise InputError(f"compare: --seed {seed}: give a number from 0 on")
    metric = options.get("--metric", "avg")
    found = compare(read_arms(arms), metric=metric, sets=sets, seed=int(seed))
    if "--plot" in options:
        from megatron_resrl.comparison.plot import plot_comparison

        plot_comparison(found, options["--plot"])
    print(json.dumps(found, indent=1) if "--json" in options else comparison_text(found))
    return 0


def _options(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Arms, and options with their values."""
    arms: list[str] = []
    options: dict[str, str] = {}
    rest = iter(arguments)
    for word in rest:
        name, equals, value = word.partition("=")
        if not word.startswith("--"):
            arms.append(word)
        elif name not in _OPTIONS:
            meant = closest(name, _OPTIONS)
            hint = f"did you mean {meant}?" if meant else f"options are {', '.join(_OPTIONS)}"
            raise InputError(f"compare: unknown option {name!r}; {hint}")
        elif name == "--json":
            options[name] = ""
        else:
            options[name] = value if equals else next(rest, "")
            if not options[name]:
                raise InputError(f"compare: no value follows {name}")
    return arms, options


def _no_settings(arguments: list[str]) -> list[str]:
    _options(arguments)
    return []


COMPARE = CliCommand(
    _compare,
    """\
evaluations of several runs, question by question, with intervals and what could have been
found (BASELINE OTHER ... [--metric pass@8] [--json]; `compare --help`)""",
    lambda: print(_HELP, end=""),
    settings_of=_no_settings,
)
