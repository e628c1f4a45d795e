"""Whether the policy is fed once what sequences of a micro-batch have in common."""

from __future__ import annotations

import logging

import torch.distributed as dist
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_resrl.config.schema import ModelConfig, PrecisionConfig
from megatron_resrl.config.shared_prompts import Sharing, shared_prompts_conflict
from megatron_resrl.errors import InputError
from megatron_resrl.policy.engine_attention import has_fused_kernel
from megatron_resrl.policy.layer_spec import uses_transformer_engine

logger = logging.getLogger(__name__)


def shares_prompts(
    sharing: Sharing,
    model: ModelConfig,
    precision: PrecisionConfig,
    config: TransformerConfig,
    *,
    packed: bool,
) -> bool:
    """Whether prompts and other beginnings are shared, as a setting says; rank 0 logs it.

    Args:
        sharing: What is asked for.
        model: Of the run.
        precision: Of the run.
        config: Of the model.
        packed: Sequences are packed anyway.

    Raises:
        InputError: It is `always`, and something stands in the way.
    """
    asked, setting = sharing
    if asked == "never":
        return False
    obstacle = _obstacle(model, precision, packed=packed)
    if obstacle is None and asked == "auto" and _stores_scores(config):
        obstacle = (
            "Transformer Engine would store the scores of all pairs of tokens, as neither cuDNN "
            "(9.7 or newer, on Hopper or newer) nor flash-attn has a kernel for it here"
        )
    if obstacle is not None and asked == "always":
        raise InputError(
            f"{setting} = 'always', but {obstacle}; with `auto` every sequence has its own copy "
            "of the prompt"
        )
    if dist.get_rank() == 0:
        if obstacle is None:
            logger.info("%s: what sequences of a micro-batch have in common is fed once", setting)
        else:
            logger.info("%s: every sequence has its own copy of the prompt: %s", setting, obstacle)
    return obstacle is None


def _stores_scores(config: TransformerConfig) -> bool:
    """Whether attention to shared prompts has no kernel of its own on these layers."""
    # With a window attention is torch's.
    windowed = config.window_size is not None
    return uses_transformer_engine() and not windowed and not has_fused_kernel(config)


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
