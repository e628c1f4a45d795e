"""Whether the runs that are compared had the same means, in training and in evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_resrl.comparison.arms import Arm, CommonSet
from megatron_resrl.comparison.evaluations import Evaluation

TRAINING = (
    *("steps", "rollout.prompts_per_step", "rollout.group_size", "rollout.max_response_length"),
    *("rollout.temperature", "data.max_prompt_length", "algorithm.updates_per_step"),
)
"""Settings of a training run that are part of its budget."""
_TOLERANCE = 0.1
"""Generated tokens of training, which no setting fixes, may differ by so much."""


def budget_differences(arms: Sequence[Arm], sets: Sequence[CommonSet]) -> list[dict[str, Any]]:
    """What differs between the runs beside what they are compared for.

    Returns:
        For each such quantity `what`, and `values`: place of the run -> its value.
    """
    runs = [run for arm in arms for run in arm.runs]
    found = []
    for common in sets:
        name = common.name
        samples = {run.place: run.sets[name].samples for run in runs}
        found += _different(f"{name}: samples per question", samples)
        for setting in ("temperature", "top_p", "max_response_length", "prompt_template"):
            known = {
                run.place: run.settings[name][setting]
                for run in runs
                if setting in run.settings.get(name, {})
            }
            found += _different(f"{name}: {setting}", known)
    if all(run.step is not None for run in runs):
        found += _different("training steps", {run.place: run.step for run in runs})
        for setting in TRAINING:
            values = {run.place: _setting(run.recipe, setting) for run in runs}
            found += _different(setting, {k: v for k, v in values.items() if v is not None})
        found += _tokens(runs)
    return found


def response_lengths(arms: Sequence[Arm], common: CommonSet) -> dict[str, float]:
    """Arm -> mean tokens of its responses to a set."""
    return {
        arm.name: sum(run.sets[common.name].tokens for run in arm.runs) / len(arm.runs)
        for arm in arms
    }


def _different(what: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    several = list(values.values())
    same = all(value == several[0] for value in several)
    return [] if same else [{"what": what, "values": dict(values)}]


def _tokens(runs: Sequence[Evaluation]) -> list[dict[str, Any]]:
    known = {run.place: run.trained_tokens for run in runs if run.trained_tokens}
    if not known or max(known.values()) <= (1 + _TOLERANCE) * min(known.values()):
        return []
    values = {place: round(tokens) for place, tokens in known.items()}
    return [{"what": "tokens generated in training", "values": values}]


def _setting(recipe: Mapping[str, Any], name: str) -> Any:
    value: Any = recipe
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
