"""From rewards and log-probabilities to a policy loss: pure tensor functions."""

from megatron_resrl.algorithms.advantages import group_normalised
from megatron_resrl.algorithms.aggregate import Aggregation, token_coefficients
from megatron_resrl.algorithms.algorithm import Algorithm
from megatron_resrl.algorithms.policy_loss import PolicyLoss, ppo_clip
from megatron_resrl.algorithms.registry import algorithm_names, algorithm_of, get_algorithm

__all__ = [
    "Aggregation",
    "Algorithm",
    "PolicyLoss",
    "algorithm_names",
    "algorithm_of",
    "get_algorithm",
    "group_normalised",
    "ppo_clip",
    "token_coefficients",
]
