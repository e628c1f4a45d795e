"""From rewards and log-probabilities to a policy loss: pure tensor functions."""

from megatron_resrl.algorithms.advantages import group_normalised
from megatron_resrl.algorithms.aggregate import Aggregation, token_coefficients
from megatron_resrl.algorithms.algorithm import Algorithm
from megatron_resrl.algorithms.correction import (
    Correction,
    CorrectionMethod,
    WeightSums,
    correction_factors,
    effective_sample_size,
    log_ratios,
    weight_sums,
)
from megatron_resrl.algorithms.policy_loss import PolicyLoss, ppo_clip
from megatron_resrl.algorithms.registry import algorithm_names, algorithm_of, get_algorithm

__all__ = [
    "Aggregation",
    "Algorithm",
    "Correction",
    "CorrectionMethod",
    "PolicyLoss",
    "WeightSums",
    "algorithm_names",
    "algorithm_of",
    "correction_factors",
    "effective_sample_size",
    "get_algorithm",
    "group_normalised",
    "log_ratios",
    "ppo_clip",
    "token_coefficients",
    "weight_sums",
]
