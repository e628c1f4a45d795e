"""What an algorithm says: how rewards become advantages, and tokens a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from megatron_resrl.algorithms.advantages import finite_vector, is_correct
from megatron_resrl.algorithms.kl_penalty import KlPenalty
from megatron_resrl.algorithms.losses import LossInputs, LossOutputs
from megatron_resrl.algorithms.options import require_choice, require_not_negative
from megatron_resrl.algorithms.policy_loss import clipped_loss

CLIP_SETTINGS = {name: f"algorithm.{name}" for name in ("clip_low", "clip_high", "dual_clip")}
"""Options of the clipped objective -> settings of a recipe."""
KL_SETTING = {"kl": "algorithm.kl_coefficient"}
"""The field of every algorithm that several settings make, and the first of them."""
RESRL_SETTINGS = {name: f"resrl.{name}" for name in ("positive_weight", "positives")}
"""Options of what token weights do -> settings of a recipe, where ResRL's weights are used."""

Positives = Literal["score", "advantage"]


@dataclass(frozen=True, kw_only=True)
class Algorithm(ABC):
    """A policy-gradient algorithm; its options are the fields of its dataclass.

    A new one is a subclass in a file of its own, which a recipe names as `algorithm.name:
    path.py:name`; or a file here and a line in `registry.py`. It defines `sample_advantages`, and
    overrides whichever other methods differ from the clipped objective.
    """

    name: ClassVar[str]
    """As written in a recipe."""
    source: ClassVar[str] = ""
    """Paper and library that its formulas are from."""
    published_with: ClassVar[Mapping[str, Any]] = {}
    """Settings of its source that differ from the defaults or matter for its results."""
    weighted: ClassVar[bool] = False
    """Whether `algorithm.weighting: auto` is what `resrl.weights` names; else it is none."""
    learns_from_incorrect: ClassVar[bool] = True
    """Whether incorrect responses have a loss, so that there is something to weigh."""
    learns_from_rewards: ClassVar[bool] = True
    """Whether rewards, and not only scores, are in the advantages."""
    needs_teacher: ClassVar[bool] = False
    """Whether the loss has the stream `teacher_log_probs` of the section `teacher`."""
    weighting_settings: ClassVar[Mapping[str, str]] = RESRL_SETTINGS
    """Like `settings`, where ResRL's weights are used."""
    settings: ClassVar[Mapping[str, str]] = CLIP_SETTINGS
    """Options that have a setting of their own outside of `algorithm.options` -> that setting."""

    clip_low: float = 0.2
    """`algorithm.clip_low`."""
    clip_high: float = 0.2
    """`algorithm.clip_high`."""
    dual_clip: float | None = None
    """`algorithm.dual_clip`."""
    entropy_coefficient: float = 0.0
    """Factor of the mean entropy, which is subtracted from the loss."""
    positive_weight: float = 1.0
    """Factor on the advantages of positive responses."""
    positives: Positives = "score"
    """Which responses are positive. `score`: correct by the verifier; `advantage`: A > 0."""
    kl: KlPenalty | None = None
    """`algorithm.kl_coefficient` and what goes with it, which the trainer applies; None: 0."""

    def __post_init__(self) -> None:
        """Checks the options.

        Raises:
            ValueError: One is out of its range.
        """
        require_not_negative("entropy_coefficient", self.entropy_coefficient)
        require_not_negative("positive_weight", self.positive_weight)
        require_choice("positives", self.positives, get_args(Positives))

    @property
    def corrects_mismatch(self) -> bool:
        """Whether the loss has the ratio of trainer and engine, so that nothing else may."""
        return False

    @property
    def kl_in_loss(self) -> bool:
        """Whether the loss has a KL penalty, and so a gradient of every response."""
        return self.kl is not None and self.kl.place == "loss"

    @property
    def needs_entropy_gradient(self) -> bool:
        """Whether the loss differentiates the entropy, which takes time and memory."""
        return self.entropy_coefficient > 0

    def calibrated_rewards(
        self, rewards: Tensor, scores: Tensor, group: Tensor, mean_log_probs: Tensor
    ) -> Tensor:
        """The rewards that `sample_advantages` gets; by default as they are.

        Args:
            rewards: [B] shaped rewards.
            scores: [B] raw scores of the verifier.
            group: [B] int64, the prompt a response belongs to. Groups are whole.
            mean_log_probs: [B] float64, mean over the generated tokens of their log-probabilities
                under the distribution that the engine sampled from.

        Returns:
            [B] float64 on the CPU.
        """
        return rewards

    @abstractmethod
    def sample_advantages(self, rewards: Tensor, scores: Tensor, group: Tensor) -> Tensor:
        """One advantage per response.

        Args:
            rewards: [B] from `calibrated_rewards`: shaped (e.g. scaled by length).
            scores: [B] raw scores of the verifier; correct is above 0.
            group: [B] int64, the prompt a response belongs to. Groups are whole.

        Returns:
            [B] float64 on the CPU.

        Raises:
            ValueError: Lengths differ or values are not finite.
        """

    def relate_over_step(self, advantages: Tensor, tokens: Tensor) -> Tensor:
        """The advantages after all responses of the step are seen; by default as they are.

        Args:
            advantages: [B] from `sample_advantages`.
            tokens: [B] int64, generated tokens of each response; 0 for responses that are left out
                of the loss.

        Returns:
            [B] float64 on the CPU.
        """
        return advantages

    def in_denominator(self, positive: Tensor) -> Tensor:
        """The responses that `algorithm.aggregation` averages over; by default all.

        Args:
            positive: [B] bool, from `positive`.

        Returns:
            [B] bool; the loss of the other responses has the coefficient 0.
        """
        return torch.ones_like(positive)

    def positive(self, scores: Tensor, advantages: Tensor) -> Tensor:
        """The responses whose tokens are to be reinforced; by default what `positives` says.

        Args:
            scores: [B] raw scores of the verifier.
            advantages: [B] from `relate_over_step`.

        Returns:
            [B] bool on the CPU.

        Raises:
            ValueError: A score is not finite.
        """
        correct = is_correct(scores)
        return correct if self.positives == "score" else finite_vector("advantages", advantages) > 0

    def has_loss(self, advantages: Tensor, positive: Tensor) -> Tensor:
        """The responses whose loss may have a gradient; the others are left out of updates.

        By default those with an advantage, or all of them with an entropy bonus or a KL penalty in
        the loss. An update in which no response has a loss is not made.

        Args:
            advantages: [B] from `relate_over_step`.
            positive: [B] bool, from `positive`.

        Returns:
            [B] bool.
        """
        if self.entropy_coefficient > 0 or self.kl_in_loss:
            return torch.ones_like(positive)
        return advantages != 0

    def token_advantages(
        self, advantages: Tensor, positive: Tensor, token_weights: Tensor
    ) -> Tensor:
        """Advantages that the policy loss uses; by default `weighted_advantages`.

        Args:
            advantages: [n] of the response that each token belongs to.
            positive: [n] bool, from `positive`.
            token_weights: [n], from `algorithm.weighting`; 1 where no weight applies.

        Returns:
            [n] in the dtype and on the device of `advantages`.

        Raises:
            ValueError: Shapes differ (they would broadcast).
        """
        return weighted_advantages(advantages, positive, token_weights, self.positive_weight)

    def policy_loss(self, inputs: LossInputs) -> LossOutputs:
        """The loss of a micro-batch; by default the clipped objective (`ppo_clip`).

        The trainer adds the entropy bonus and the KL penalty. Collective over context-parallel
        ranks if it uses `sequence_sum` or `sequence_mean`.

        Args:
            inputs: The micro-batch's generated tokens on this rank.

        Returns:
            The loss and metrics under names of the algorithm's choice.
        """
        return clipped_loss(
            inputs,
            inputs.log_probs - inputs.old_log_probs,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            dual_clip=self.dual_clip,
        )


def weighted_advantages(
    advantages: Tensor, positive: Tensor, token_weights: Tensor, positive_weight: float
) -> Tensor:
    """Positives: positive_weight w_t A. Negatives: w_t A, token by token (ResRL, arXiv 2605.00380).

    Args:
        advantages: [n] float.
        positive: [n] bool.
        token_weights: [n] float.
        positive_weight: At least 0.

    Returns:
        [n] in the dtype of the advantages.

    Raises:
        ValueError: Shapes differ.
    """
    if not advantages.shape == positive.shape == token_weights.shape:
        raise ValueError(
            f"advantages {list(advantages.shape)}, positive {list(positive.shape)} and "
            f"token_weights {list(token_weights.shape)} must have the same shape"
        )
    weights = token_weights.to(advantages.dtype)
    return advantages * torch.where(positive, positive_weight * weights, weights)
