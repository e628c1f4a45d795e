"""Number formats of weights and activations."""

from __future__ import annotations

from typing import Any

import torch

from megatron_resrl.config.schema import PrecisionConfig
from megatron_resrl.errors import InputError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def params_dtype(precision: PrecisionConfig) -> torch.dtype:
    """Type of weights and activations."""
    return _DTYPES[precision.params_dtype]


def transformer_precision(precision: PrecisionConfig) -> dict[str, Any]:
    """megatron-core `TransformerConfig` fields for the chosen formats.

    Args:
        precision: The recipe's section.

    Returns:
        Keyword arguments.

    Raises:
        InputError: FP8 without Transformer Engine: megatron-core's local layers would silently
            ignore the setting and train in the parameters' type.
    """
    dtype = params_dtype(precision)
    fields: dict[str, Any] = {
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "bf16": dtype is torch.bfloat16,
        "deterministic_mode": precision.deterministic,
    }
    if precision.fp8 is not None:
        from megatron.core.fp8_utils import HAVE_TE

        if not HAVE_TE:
            raise InputError(
                f"precision.fp8 is {precision.fp8!r}, which needs Transformer Engine; "
                "install the `te` extra on a machine with CUDA, or set precision.fp8 to null"
            )
        start, end = precision.num_layers_at_start_in_bf16, precision.num_layers_at_end_in_bf16
        fields |= {
            "fp8": precision.fp8,
            "fp8_recipe": precision.fp8_recipe,
            "first_last_layers_bf16": start + end > 0,
            "num_layers_at_start_in_bf16": start,
            "num_layers_at_end_in_bf16": end,
        }
    return fields
