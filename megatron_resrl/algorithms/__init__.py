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
from megatron_resrl.algorithms.kl_penalty import KlPenalty
from megatron_resrl.algorithms.losses import LossInputs, LossOutputs, LossSums, entropy_bonus
from megatron_resrl.algorithms.policy_loss import PolicyLoss, ppo_clip
from megatron_resrl.algorithms.registry import (
    algorithm_names,
    get_algorithm,
    get_algorithm_class,
)

__all__ = [
    "Aggregation",
    "Algorithm",
    "Correction",
    "CorrectionMethod",
    "KlPenalty",
    "LossInputs",
    "LossOutputs",
    "LossSums",
    "PolicyLoss",
    "WeightSums",
    "algorithm_names",
    "correction_factors",
    "effective_sample_size",
    "entropy_bonus",
    "get_algorithm",
    "get_algorithm_class",
    "group_normalised",
    "log_ratios",
    "ppo_clip",
    "token_coefficients",
    "weight_sums",
]
