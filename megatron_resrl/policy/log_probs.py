"""Log-probabilities and entropy over a vocabulary split across tensor-parallel ranks.

Logits are made for a chunk of tokens at a time, forward and again backward, so that the
full-vocabulary logits of a batch never exist at once.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = 1 << 26
"""Largest number of logits in a chunk. Two fp32 tensors of a chunk are alive at once forward
(512 MiB), one and a 16-bit copy backward (384 MiB), where an fp32 sum of the weight's gradient and
a product of at most as many elements come on top."""


def vocab_parallel_log_probs(
    hidden: torch.Tensor,
    output_weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    vocab_size: int,
    temperature: float = 1.0,
    group: dist.ProcessGroup | None = None,
    chunk_tokens: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(target) and the entropy of the distribution, for each token.

    Differentiable in `hidden` and `output_weight` through the log-probabilities only. The
    gradient of `hidden` is this rank's share; the caller sums it over `group`.

    Args:
        hidden: [N, H] final hidden states, the same on all ranks of `group`.
        output_weight: [V / TP, H], this rank's rows of the output matrix.
        targets: [N] int64 token ids.
        vocab_size: Real size of the vocabulary; rows beyond it are padding and get no mass.
        temperature: Divides the logits.
        group: Tensor-parallel group; None: the vocabulary is whole.
        chunk_tokens: Tokens per chunk; default: as many as `CHUNK_ELEMENTS` allows.

    Returns:
        log_probs [N] fp32 and entropy [N] fp32 (nats, without gradient).
    """
    chunk_tokens = chunk_tokens or max(1, CHUNK_ELEMENTS // output_weight.shape[0])
    return _VocabParallelLogProbs.apply(
        hidden, output_weight, targets, vocab_size, temperature, group, chunk_tokens
    )


class _VocabParallelLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        vocab_size: int,
        temperature: float,
        group: dist.ProcessGroup | None,
        chunk_tokens: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        shard = _VocabularyShard(weight, vocab_size, temperature, group)
        log_probs = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
        entropy = torch.empty_like(log_probs)
        log_normaliser = torch.empty_like(log_probs)
        for start in range(0, len(targets), chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            logits = shard.logits(hidden[chunk])
            target_logits = shard.select(logits, targets[chunk])
            peak = shard.reduce(logits.amax(-1), dist.ReduceOp.MAX)
            logits -= peak[:, None]
            exponentials = logits.exp()
            total = exponentials.sum(-1)
            # Padding has weight 0 and logit -inf; their product must count as 0.
            logits.clamp_min_(torch.finfo(logits.dtype).min)
            first_moment = exponentials.mul_(logits).sum(-1)
            sums = torch.stack([total, first_moment, target_logits])
            total, first_moment, target_logits = shard.reduce(sums, dist.ReduceOp.SUM)
            log_normaliser[chunk] = peak + total.log()
            log_probs[chunk] = target_logits - log_normaliser[chunk]
            entropy[chunk] = total.log() - first_moment / total
            del logits, exponentials  # Before the next chunk's are made.
        ctx.save_for_backward(hidden, weight, targets, log_normaliser)
        ctx.settings = (vocab_size, temperature, group, chunk_tokens)
        ctx.mark_non_differentiable(entropy)
        return log_probs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_log_probs: torch.Tensor, _: torch.Tensor) -> tuple[Any, ...]:
        hidden, weight, targets, log_normaliser = ctx.saved_tensors
        vocab_size, temperature, group, chunk_tokens = ctx.settings
        shard = _VocabularyShard(weight, vocab_size, temperature, group)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        for start in range(0, len(targets), chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            grad_logits = shard.logits(hidden[chunk])
            grad_logits.sub_(log_normaliser[chunk, None]).exp_().neg_()
            shard.add_to_selected(grad_logits, targets[chunk])
            grad_logits *= (grad_log_probs[chunk] / temperature)[:, None]
            grad_logits = grad_logits.to(weight.dtype)
            torch.mm(grad_logits, weight, out=grad_hidden[chunk])
            _add_product(grad_weight, grad_logits, hidden[chunk])
            del grad_logits
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None, None, None


def _add_product(total: torch.Tensor, grad_logits: torch.Tensor, hidden: torch.Tensor) -> None:
    """total [V / TP, H] += grad_logits [n, V / TP] transposed @ hidden [n, H].

    A product of all rows at once would be as large as the weight.
    """
    block = max(1, CHUNK_ELEMENTS // hidden.shape[1])
    for rows, own in zip(total.split(block), grad_logits.split(block, dim=1), strict=True):
        rows += own.T @ hidden


class _VocabularyShard:
    """The rows of the output matrix that this rank holds."""

    def __init__(
        self,
        weight: torch.Tensor,
        vocab_size: int,
        temperature: float,
        group: dist.ProcessGroup | None,
    ) -> None:
        self.weight = weight
        self.temperature = temperature
        self.group = group
        self.rows = weight.shape[0]
        self.first = self.rows * (dist.get_rank(group) if group is not None else 0)
        self.valid = min(self.rows, max(0, vocab_size - self.first))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[n, V / TP] fp32, -inf for padding rows."""
        logits = (hidden @ self.weight.T).float()
        if self.temperature != 1.0:
            logits /= self.temperature
        logits[:, self.valid :] = float("-inf")
        return logits

    def _own(self, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        local = targets - self.first
        own = (local >= 0) & (local < self.rows)
        return local.clamp(0, self.rows - 1), own

    def select(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """[n] the targets' logits where this rank holds them, else 0."""
        local, own = self._own(targets)
        return logits.gather(1, local[:, None])[:, 0].masked_fill(~own, 0.0)

    def add_to_selected(self, tensor: torch.Tensor, targets: torch.Tensor) -> None:
        """Adds 1 to the targets' columns that this rank holds."""
        local, own = self._own(targets)
        tensor.scatter_add_(1, local[:, None], own[:, None].to(tensor.dtype))

    def reduce(self, tensor: torch.Tensor, operation: Any) -> torch.Tensor:
        if self.group is not None and dist.get_world_size(self.group) > 1:
            tensor = tensor.contiguous()
            dist.all_reduce(tensor, op=operation, group=self.group)
        return tensor
