"""Which files are mutated, and which tests look at them: the closest first, then wider ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_STEP = "tests/distributed/training/test_reference_step.py"
_RUN = "tests/end_to_end/test_train_and_resume.py"
_SETTINGS = "tests/end_to_end/test_settings_reach_the_run.py"
_OUTPUTS = "tests/end_to_end/test_outputs.py"


@dataclass(frozen=True)
class Target:
    """Files of one room and the tests that should notice a fault in them."""

    paths: tuple[str, ...]
    """Files and folders below `megatron_resrl`."""
    rounds: tuple[tuple[str, ...], ...]
    """Tests to run, one round after the other until one fails."""

    def files(self, root: Path) -> Iterator[str]:
        """The Python files, as paths from the root of the checkout."""
        for path in self.paths:
            place = root / "megatron_resrl" / path
            found = sorted(place.rglob("*.py")) if place.is_dir() else [place]
            yield from (str(file.relative_to(root)) for file in found)


TARGETS = {
    "algorithms": Target(("algorithms",), (("tests/unit/algorithms",), (_STEP,))),
    "sandbox": Target(
        ("sandbox",),
        (("tests/unit/sandbox", "tests/unit/rewards/test_rewards_code.py"),),
    ),
    "subspace": Target(
        ("subspace", "token_weighting"),
        (
            ("tests/unit/subspace", "tests/unit/token_weighting"),
            ("tests/distributed/training/test_token_weights.py", _STEP),
        ),
    ),
    "token_weighting": Target(
        ("token_weighting",),
        (
            ("tests/unit/token_weighting",),
            (_STEP,),
            (
                "tests/distributed/training/test_token_weights.py",
                "tests/distributed/training/test_diagnosis.py",
            ),
        ),
    ),
    "diagnostics": Target(
        ("diagnostics",),
        (("tests/unit/diagnostics",), ("tests/distributed/training/test_diagnosis.py", _STEP)),
    ),
    "training": Target(
        ("training", "diagnostics"),
        (
            ("tests/unit/training",),
            (_STEP,),
            ("tests/distributed/training",),
            (_RUN, _OUTPUTS, _SETTINGS),
        ),
    ),
    "corpus": Target(("corpus",), (("tests/unit/corpus",), ("tests/unit/tools",))),
    "collection": Target(
        ("rollout/collector.py", "rollout/queue.py", "rollout/log.py", "rollout/recording.py"),
        (
            ("tests/unit/rollout/test_queue.py", "tests/unit/rollout/test_recording.py"),
            ("tests/distributed/rollout/test_rollout_log.py",),
            ("tests/end_to_end/test_collection.py", _RUN, _SETTINGS),
        ),
    ),
    "policy": Target(
        ("policy",),
        (
            ("tests/unit/policy", "tests/unit/checks/test_sizes.py"),
            (_STEP,),
            ("tests/distributed/policy",),
        ),
    ),
    "sampling": Target(
        ("rollout/sampling.py", "rollout/collect.py"),
        (
            (
                "tests/unit/rollout/test_sampling.py",
                "tests/unit/rollout/test_overlong.py",
                "tests/unit/rollout/test_lost_scores.py",
            ),
            (_RUN, _SETTINGS),
        ),
    ),
    "rewards": Target(("rewards",), (("tests/unit/rewards",), (_SETTINGS,))),
    "evaluation": Target(("evaluation",), (("tests/unit/evaluation",), (_SETTINGS, _RUN))),
    "checkpoint": Target(
        ("checkpoint",),
        (("tests/unit/checkpoint",), ("tests/distributed/checkpoint",), (_RUN,)),
    ),
}
