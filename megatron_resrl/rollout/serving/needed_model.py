"""What a recipe needs its servers to serve."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_resrl.config.schema import DataConfig, ModelConfig, PrecisionConfig
from megatron_resrl.config.schema_rollout import RolloutConfig


@dataclass(frozen=True)
class NeededModel:
    """The model, its number format, and the lengths that a server has to take."""

    path: str
    """`model.path`."""
    max_prompt_length: int
    max_response_length: int
    params_dtype: str = "bf16"
    """`precision.params_dtype`."""
    tokenizer_path: str | None = None
    """`model.tokenizer_path`."""

    @classmethod
    def of(
        cls,
        model: ModelConfig,
        precision: PrecisionConfig,
        data: DataConfig,
        rollout: RolloutConfig,
    ) -> NeededModel:
        """The model that these sections describe."""
        return cls(
            model.path,
            data.max_prompt_length,
            rollout.max_response_length,
            precision.params_dtype,
            model.tokenizer_path,
        )

    @property
    def max_length(self) -> int:
        """Tokens of the longest prompt and response together."""
        return self.max_prompt_length + self.max_response_length
