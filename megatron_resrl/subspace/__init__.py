"""From hidden states to token weights: the subspace of a prompt group's positive tokens."""

from megatron_resrl.subspace.basis import Basis, basis_from_rows, basis_from_statistics
from megatron_resrl.subspace.report import SKIP_REASONS, GroupReport, summarise
from megatron_resrl.subspace.residual import residuals
from megatron_resrl.subspace.statistics import (
    Statistics,
    gather_statistics,
    layer_norm,
    normalised_rows,
)
from megatron_resrl.subspace.token_weights import (
    group_token_weights,
    sampling_key,
    token_weights,
    token_weights_with_reports,
)

__all__ = [
    "SKIP_REASONS",
    "Basis",
    "GroupReport",
    "Statistics",
    "basis_from_rows",
    "basis_from_statistics",
    "gather_statistics",
    "group_token_weights",
    "layer_norm",
    "normalised_rows",
    "residuals",
    "sampling_key",
    "summarise",
    "token_weights",
    "token_weights_with_reports",
]
