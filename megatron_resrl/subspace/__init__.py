"""From hidden states to token weights: the subspace of a prompt group's positive tokens."""

from megatron_resrl.subspace.basis import Basis, basis_from_rows, basis_from_statistics
from megatron_resrl.subspace.collectors import automatic_method
from megatron_resrl.subspace.plan import (
    GroupPlan,
    SubspaceSettings,
    Window,
    WindowLimits,
    make_plan,
    sampling_key,
)
from megatron_resrl.subspace.report import SKIP_REASONS, GroupReport, summarise
from megatron_resrl.subspace.residual import residuals
from megatron_resrl.subspace.rows import layer_norm
from megatron_resrl.subspace.shard_group import TokenShardGroup
from megatron_resrl.subspace.statistics import (
    Statistics,
    gather_statistics,
    scatter_statistics,
)
from megatron_resrl.subspace.stream import TokenWeightStream
from megatron_resrl.subspace.token_weights import token_weights, token_weights_with_reports

__all__ = [
    "SKIP_REASONS",
    "Basis",
    "GroupPlan",
    "GroupReport",
    "Statistics",
    "SubspaceSettings",
    "TokenShardGroup",
    "TokenWeightStream",
    "Window",
    "WindowLimits",
    "automatic_method",
    "basis_from_rows",
    "basis_from_statistics",
    "gather_statistics",
    "layer_norm",
    "make_plan",
    "residuals",
    "sampling_key",
    "scatter_statistics",
    "summarise",
    "token_weights",
    "token_weights_with_reports",
]
