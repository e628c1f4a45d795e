"""THR (arXiv 2510.03669): dominant tokens alone, more or less by the sign of their hidden reward.

    s_ti = 1 / N_i sum over the tokens k of correct response i of <delta_k, delta_t> <h_k, h_t>
    THR_t = sum over i of s_ti, times -1 in incorrect responses
    tau = threshold min over correct responses j of (mean over its t of sum over i != j of s_ti)
    w_t = [|THR_t| > tau] (1 + sign(THR_t) p)

With p above 0 those tokens count more that make the correct responses likelier (exploitation),
below 0 the others (exploration). The paper has tau from NTHR; h, delta, the vocabulary, and tau of
a group with one correct response are as there (`nthr.py`).

Shapes: N generated tokens of a response, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from megatron_resrl.token_weighting.hidden_reward_pass import (
    HiddenRewardPass,
    HiddenRewardWeighting,
)
from megatron_resrl.token_weighting.whole_groups import SidesReport, summary_of_sides


class THRPass(HiddenRewardPass):
    """Weights of a group with the options `THROptions`."""

    def _weights_of(self, correct: Sequence[int], incorrect: Sequence[int]) -> dict[int, Tensor]:
        """See `WholeGroupPass._weights_of`."""
        rewards, least = self._hidden_rewards(correct, incorrect, of_means=True)
        threshold, p = self._options.threshold * least, self._options.p
        signed = {row: rewards[row] for row in correct}
        signed |= {row: -rewards[row] for row in incorrect}
        return {
            row: ((thr_N.abs() > threshold) * (1 + p * thr_N.sign())).float()
            for row, thr_N in signed.items()
        }


class THRWeighting(HiddenRewardWeighting):
    """Weights of both sides; all are 1 in a group that has only one."""

    of_group = THRPass

    def summarise(self, reports: Sequence[SidesReport], *, detailed: bool) -> dict[str, float]:
        """`thr/..`: how many groups are compared, and the mean weight of each side."""
        return summary_of_sides("thr", reports)
