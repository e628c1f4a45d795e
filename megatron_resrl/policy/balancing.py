"""The loss that balances experts: megatron-core's, made right for gradients that are summed.

A layer's loss in a micro-batch is coefficient x experts x the sum over experts of (share of the
tokens' places that an expert gets) x (mean routing probability of that expert): 1 x coefficient
where all experts get as much (Switch Transformer, arXiv 2101.03961, equation 4).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer.moe.moe_utils import (
    clear_aux_losses_tracker,
    get_moe_layer_wise_logging_tracker,
)
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_resrl.platform.distributed import device


def balances_experts(config: TransformerConfig) -> bool:
    """Whether the model's loss has a term that balances experts."""
    kind = config.moe_router_load_balancing_type
    return bool(config.num_moe_experts and config.moe_aux_loss_coeff and kind != "none")


@contextlib.contextmanager
def summed_balancing(config: TransformerConfig, coefficient: float) -> Iterator[None]:
    """Weights each micro-batch's loss by `coefficient` x its tokens, whatever ranks share them.

    megatron-core multiplies each rank's part of the loss by the tokens of that rank, and leaves
    the division by all tokens of the step to a later pass over the gradients, which summed
    gradients do not have. Ranks that share a sequence each have a part of the loss and a part of
    the tokens, so that their product lacks the number of these ranks.

    Args:
        config: Of the model; its coefficient is changed within the block.
        coefficient: 1 / tokens of the step.
    """
    own = config.moe_aux_loss_coeff
    sharing = dist.get_world_size(parallel_state.get_tensor_and_context_parallel_group())
    config.moe_aux_loss_coeff = own * coefficient * sharing
    try:
        yield
    finally:
        config.moe_aux_loss_coeff = own


def take_balancing_loss(config: TransformerConfig, micro_batches: int) -> float:
    """Mean loss, without its coefficient, of layers and micro-batches since the last call.
    Collective.

    Args:
        config: Of the model.
        micro_batches: Of each replica.
    """
    total = torch.zeros((), dtype=torch.float64, device=device())
    for entry in get_moe_layer_wise_logging_tracker().values():
        total += entry["values"].double().sum()
    clear_aux_losses_tracker()
    # Pipeline stages have other layers; ranks that share a sequence have parts of its loss.
    dist.all_reduce(total)
    # All layers, or a list that says which; see `Mixture.transformer_fields`.
    layers = config.moe_layer_freq
    sparse = sum(layers) if isinstance(layers, list) else config.num_layers
    replicas = parallel_state.get_data_parallel_world_size()
    return float(total) / (sparse * micro_batches * replicas)
