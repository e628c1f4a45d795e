"""The observers of a training run."""

from __future__ import annotations

from megatron_resrl.config.schema import ResrlConfig
from megatron_resrl.diagnostics.displaced_likelihood import DisplacedLikelihood
from megatron_resrl.diagnostics.divergence import Divergence
from megatron_resrl.diagnostics.interference import Interference
from megatron_resrl.diagnostics.observer import StepObservers
from megatron_resrl.diagnostics.step_metrics import StepMetrics
from megatron_resrl.observe.timers import PhaseTimers


def standard_observers(
    settings: ResrlConfig, *, temperature: float, seed: int, timers: PhaseTimers
) -> StepObservers:
    """Metrics of every step, and every `resrl.diagnose_every` steps the diagnosis.

    Args:
        settings: The recipe's section.
        temperature: `rollout.temperature`.
        seed: Of the run.
        timers: Phase "diagnosis" is timed here.
    """
    every = settings.diagnose_every
    return StepObservers(
        [
            StepMetrics(every),
            Interference(settings, temperature, seed, timers),
            DisplacedLikelihood(every, timers),
            Divergence(),
        ]
    )
