"""How much raising the likelihood of some tokens raises that of another, by their last layer alone.

The gradient of log p(y) with respect to the output matrix is the outer product of delta = e_y - p
and the state h. The inner product of two tokens' gradients is <delta1, delta2> <h1, h2>. Its sum
over many first tokens is delta2^T G h2 with G = sum delta1 h1^T, which takes no pairs. delta is
restricted to some tokens of the vocabulary, as by Deng et al., arXiv 2505.18830.

Shapes: N tokens, H hidden size, C columns of this rank.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_resrl.platform.distributed import on_device
from megatron_resrl.policy.interference import CHUNK_ELEMENTS, log_normaliser
from megatron_resrl.policy.vocabulary import VocabularyShard


class HiddenRewards:
    """Inner products of gradients over some tokens of the vocabulary.

    Logits are in the shard's dtype, all else is float64. Probabilities are those of the whole
    vocabulary, of which every rank of the shard's group has a part.
    """

    def __init__(self, shard: VocabularyShard, tokens: Tensor) -> None:
        """
        Args:
            shard: Of the output matrix.
            tokens: [U] int64 on the CPU: ids without repetition, rising.
        """
        self._shard = shard
        own = (tokens >= shard.first) & (tokens < shard.first + shard.valid)
        self._columns = tokens[own] - shard.first
        self._weight_CH = shard.weight[on_device(self._columns, shard.weight.device)]

    def gradient(self, states_NH: Tensor, targets_N: Tensor) -> Tensor:
        """[C, H] float64: G of some tokens, this rank's columns.

        Args:
            states_NH: Final states, the same on all ranks of the shard's group.
            targets_N: int64 on the CPU: the tokens that they predicted.
        """
        return self._errors(states_NH, targets_N).T @ states_NH.double()

    def of_tokens(self, states_NH: Tensor, targets_N: Tensor, gradient_CH: Tensor) -> Tensor:
        """[N] float64: of each token the sum of inner products with those of G. Collective.

        Args:
            states_NH: As for `gradient`.
            targets_N: As for `gradient`.
            gradient_CH: From `gradient`, or a sum of such.
        """
        errors_NC = self._errors(states_NH, targets_N)
        rewards_N = ((errors_NC @ gradient_CH) * states_NH.double()).sum(1)
        return self._shard.reduce(rewards_N, dist.ReduceOp.SUM)

    def _errors(self, states_NH: Tensor, targets_N: Tensor) -> Tensor:
        """[N, C] float64: e_y - p. Collective."""
        shard = self._shard
        width = max(1, CHUNK_ELEMENTS // max(1, len(states_NH)))
        chunks = [slice(start, start + width) for start in range(0, shard.valid, width)]
        normaliser_N = log_normaliser(shard, states_NH, chunks)
        logits_NC = (states_NH @ self._weight_CH.T).to(shard.logits_dtype) / shard.temperature
        errors_NC = -(logits_NC - normaliser_N[:, None]).exp().double()
        # The targets among this rank's columns, which rise.
        local_N = targets_N - shard.first
        column_N = torch.searchsorted(self._columns, local_N)
        row = torch.isin(local_N, self._columns).nonzero()[:, 0]
        place = (on_device(each, errors_NC.device) for each in (row, column_N[row]))
        errors_NC[tuple(place)] += 1.0
        return errors_NC
