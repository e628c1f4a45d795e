"""Models beside the policy that score a step's responses once, before its updates.

None of them has weights on the device while the policy is there: a reference, or a teacher of the
policy's architecture, takes the policy's place for a pass without gradients.

Shapes: B responses of this replica, T tokens of the step's longest response.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from megatron_resrl.algorithms import Algorithm
from megatron_resrl.algorithms.distillation import TEACHER
from megatron_resrl.algorithms.kl_penalty import REFERENCE
from megatron_resrl.checkpoint.host_copies import host_copies
from megatron_resrl.config.schema_teacher import TeacherConfig
from megatron_resrl.errors import InputError
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.platform.phases import named_phase
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.batch import RolloutBatch
from megatron_resrl.training.scoring import PassSettings, score_batch
from megatron_resrl.training.teacher_server import TeacherServer
from megatron_resrl.weights.load import load_model_weights


class OtherModel(Protocol):
    """Gives log-probabilities of tokens that it did not draw."""

    def log_probs(self, batch: RolloutBatch, settings: PassSettings, timers: PhaseTimers) -> Tensor:
        """Scores this replica's responses. Collective.

        Args:
            batch: On the CPU.
            settings: Micro-batches, and the temperature that divides the logits.
            timers: Of the step.

        Returns:
            [B, T] fp32 on the policy's device, meaningful on the last stage; entries outside of the
            loss mask are unused.
        """
        ...


OtherModels = Mapping[str, OtherModel]
"""By the names under which `LossInputs.extra` has their log-probabilities."""


class FrozenPolicy:
    """The weights that a policy has now, on host memory for the rest of the run."""

    def __init__(self, policy: Policy) -> None:
        """Copies this rank's weights, in their own dtype.

        Args:
            policy: Trained later on; `log_probs` needs it at a time when it is not.
        """
        self._policy = policy
        self._kept = host_copies(self._weights())

    def log_probs(self, batch: RolloutBatch, settings: PassSettings, timers: PhaseTimers) -> Tensor:
        """See `OtherModel.log_probs`; the policy's weights are the same bits afterwards.

        Raises:
            LogitsNotFinite: On all ranks, if a log-probability is not a number.
        """
        with self._in_place():
            return score_batch(self._policy, batch, settings, timers).log_probs

    def restore(self) -> None:
        """Gives the policy the kept weights back."""
        _write(self._weights(), self._kept)

    def _weights(self) -> list[Tensor]:
        return [
            parameter.detach()
            for module in self._policy.modules
            for parameter in module.parameters()
        ]

    @contextlib.contextmanager
    def _in_place(self) -> Iterator[None]:
        """Exchanges the weights for a block.

        In the tensors that are there, because the optimizer and buffers of gradients hold views of
        them; the policy's own wait on host memory meanwhile.
        """
        weights = self._weights()
        own = host_copies(weights)
        try:
            _write(weights, self._kept)
            yield
        finally:
            _write(weights, own)


def frozen_teacher(policy: Policy, path: str) -> FrozenPolicy:
    """A model of the policy's architecture as a `FrozenPolicy`. Collective.

    Args:
        policy: Has its own weights again afterwards.
        path: `teacher.path`.

    Raises:
        InputError: On all ranks: the weights cannot be read, or do not fit the policy.
    """
    own = FrozenPolicy(policy)
    try:
        load_model_weights(policy.modules, policy.hf_config, path)
        return FrozenPolicy(policy)
    except InputError as error:
        # It speaks of the setting that it was written for.
        refusal = InputError(str(error).replace("model.path", "teacher.path"))
        refusal.common = error.common
        raise refusal from error
    finally:
        own.restore()


def _write(weights: list[Tensor], values: list[Tensor]) -> None:
    with torch.no_grad():
        for weight, value in zip(weights, values, strict=True):
            weight.copy_(value, non_blocking=True)


def other_models(algorithm: Algorithm, teacher: TeacherConfig, policy: Policy) -> OtherModels:
    """The models that a run needs beside its policy. Collective.

    Args:
        algorithm: Of the run.
        teacher: The recipe's section.
        policy: With the weights that the run began with, also where it is to be resumed: what is
            kept is what it is now.

    Raises:
        InputError: On all ranks: the teacher's weights cannot be read, or its server does not
            answer.
    """
    found: dict[str, OtherModel] = {}
    if algorithm.kl is not None:
        with named_phase("copy of the reference's weights"):
            found[REFERENCE] = FrozenPolicy(policy)
    if algorithm.needs_teacher:
        with named_phase("start of the teacher"):
            if teacher.path is None:
                found[TEACHER] = TeacherServer(teacher)
            else:
                found[TEACHER] = frozen_teacher(policy, teacher.path)
    return found
