"""Whether the policy is fed a prompt once for all of its responses in a micro-batch."""

from __future__ import annotations

import logging

import torch.distributed as dist

from megatron_resrl.config.schema import ModelConfig, PrecisionConfig, WhenExact
from megatron_resrl.config.shared_prompts import shared_prompts_conflict
from megatron_resrl.errors import InputError
from megatron_resrl.policy.layer_spec import uses_transformer_engine

logger = logging.getLogger(__name__)


def shares_prompts(
    asked: WhenExact, model: ModelConfig, precision: PrecisionConfig, *, packed: bool
) -> bool:
    """Whether prompts are shared, as `algorithm.shared_prompts` says; rank 0 logs it.

    Args:
        asked: The setting.
        model: Of the run.
        precision: Of the run.
        packed: Sequences are packed anyway.

    Raises:
        InputError: It is `always`, and something stands in the way.
    """
    if asked == "never":
        return False
    obstacle = _obstacle(model, precision, packed=packed)
    if obstacle is None and asked == "auto" and uses_transformer_engine():
        obstacle = "on Transformer Engine's layers they are shared only where `always` asks for it"
    if obstacle is not None and asked == "always":
        raise InputError(
            f"algorithm.shared_prompts = 'always', but {obstacle}; with `auto` every response "
            "carries its own copy of the prompt"
        )
    if dist.get_rank() == 0:
        if obstacle is None:
            logger.info(
                "responses to one prompt share it in a micro-batch, where they stand behind each "
                "other"
            )
        else:
            logger.info("every response carries its own copy of the prompt: %s", obstacle)
    return obstacle is None


def _obstacle(model: ModelConfig, precision: PrecisionConfig, *, packed: bool) -> str | None:
    conflict = shared_prompts_conflict(model, precision)
    if conflict is not None:
        return conflict.reason
    if precision.params_dtype == "fp32" and uses_transformer_engine() and not packed:
        return (
            "precision.params_dtype is 'fp32', and Transformer Engine's kernels of packed "
            "sequences take 16-bit numbers"
        )
    return None
