"""What an algorithm has to say: how rewards become advantages of responses, then of tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from megatron_resrl.algorithms.advantages import is_correct
from megatron_resrl.config.schema import Recipe


@dataclass(frozen=True)
class Algorithm(ABC):
    """A policy-gradient algorithm; its options are the fields of its dataclass.

    A new one is a subclass in a file of its own, which a recipe names as `algorithm.name:
    path.py:name`; or a file here and a line in `registry.py`.
    """

    name: ClassVar[str]
    """As written in a recipe."""
    needs_hidden_states: ClassVar[bool] = False
    """Whether token weights must be computed from hidden states; else they are all 1."""

    @classmethod
    def settings_of(cls, recipe: Recipe) -> dict[str, tuple[str, Any]]:
        """Fields that have a setting of their own outside `algorithm.options`.

        Returns:
            Field -> the recipe's section, and the value there.
        """
        return {}

    @abstractmethod
    def sample_advantages(self, rewards: Tensor, scores: Tensor, group: Tensor) -> Tensor:
        """One advantage per response.

        Args:
            rewards: [B] shaped rewards (e.g. scaled by length).
            scores: [B] raw scores of the verifier; correct is above 0.
            group: [B] int64, the prompt a response belongs to. Groups are whole.

        Returns:
            [B] float64 on the CPU.

        Raises:
            ValueError: Lengths differ or values are not finite.
        """

    def positive(self, scores: Tensor, advantages: Tensor) -> Tensor:
        """The responses whose tokens are to be reinforced; by default the correct ones.

        Args:
            scores: [B] raw scores of the verifier.
            advantages: [B] from `sample_advantages`.

        Returns:
            [B] bool on the CPU.

        Raises:
            ValueError: A score is not finite.
        """
        return is_correct(scores)

    def token_advantages(
        self, advantages: Tensor, positive: Tensor, token_weights: Tensor
    ) -> Tensor:
        """Advantages that the policy loss uses; by default those of the responses.

        Args:
            advantages: [N] of the response that each token belongs to.
            positive: [N] bool, from `positive`.
            token_weights: [N], 1 where no weight applies.

        Returns:
            [N] in the dtype and on the device of `advantages`.
        """
        return advantages
