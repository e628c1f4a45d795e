"""Cross-entropy of next tokens over a vocabulary split across tensor-parallel ranks.

The loss is known before its backward pass, other than that of a policy gradient. So each chunk of
logits gives its loss and its gradient at once and is made only once, as in Liger-Kernel's fused
linear cross-entropy; the full-vocabulary logits of a batch never exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from megatron_resrl.policy.log_probs import CHUNK_ELEMENTS, add_product, empty_total
from megatron_resrl.policy.vocabulary import VocabularyShard

_CACHED_ELEMENTS = 1 << 21
"""Logits in a chunk on a CPU: as many as its caches take (8 MiB)."""
_FEWEST_TOKENS = 128
"""Of a chunk on a CPU; products of fewer rows are slow."""


@dataclass(frozen=True)
class TokenLoss:
    """What a supervised loss is made of, per target: `coefficient` x (-log p + z x log Z ^ 2)."""

    coefficient: float
    """What each target counts: 1 / all targets of the step gives their mean."""
    z_loss_coefficient: float = 0.0
    """Of the squared log-normaliser log Z (PaLM, arXiv 2204.02311, section 5)."""


def vocab_parallel_cross_entropy(
    hidden: torch.Tensor,
    output_weight: torch.Tensor,
    targets: torch.Tensor,
    loss: TokenLoss,
    *,
    vocab_size: int,
    group: dist.ProcessGroup | None = None,
    chunk_tokens: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of N targets, and what it is made of.

    Differentiable in `hidden` and `output_weight`; without gradients switched on, only the loss is
    computed. The gradient of `hidden` is this rank's share; the caller sums it over `group`.

    Args:
        hidden: [N, H] final hidden states, the same on all ranks of `group`.
        output_weight: [V / TP, H], this rank's rows of the output matrix.
        targets: [N] int64 token ids.
        loss: What each target counts.
        vocab_size: Real size of the vocabulary; rows beyond it are padding and get no mass.
        group: Tensor-parallel group; None: the vocabulary is whole.
        chunk_tokens: Tokens per chunk; default: as many as `CHUNK_ELEMENTS` logits allow, on a CPU
            as its caches take.

    Returns:
        The loss, a scalar, and [2] the sums of -log p and of log Z ^ 2 over the targets, without
        gradient; fp32, or float64 for a float64 output matrix.
    """
    chunk_tokens = chunk_tokens or _tokens_per_chunk(output_weight)
    return _CrossEntropy.apply(
        hidden, output_weight, targets, loss, vocab_size, group, chunk_tokens,
        torch.is_grad_enabled(),
    )  # fmt: skip


def _tokens_per_chunk(output_weight: torch.Tensor) -> int:
    rows = output_weight.shape[0]
    elements = CHUNK_ELEMENTS
    if not output_weight.is_cuda:
        elements = min(elements, max(_CACHED_ELEMENTS, _FEWEST_TOKENS * rows))
    return max(1, elements // rows)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        loss: TokenLoss,
        vocab_size: int,
        group: dist.ProcessGroup | None,
        chunk_tokens: int,
        with_gradient: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        shard = VocabularyShard(weight, vocab_size, 1.0, group)
        sums = hidden.new_zeros(2, dtype=shard.logits_dtype)
        grad_hidden = torch.empty_like(hidden) if with_gradient else None
        grad_weight = empty_total(weight, targets, shard.logits_dtype) if with_gradient else None
        for start in range(0, len(targets), chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            logits = shard.logits(hidden[chunk])
            target_logits = shard.select(logits, targets[chunk])
            peak = shard.reduce(logits.amax(-1), dist.ReduceOp.MAX)
            # exp(logit - peak), in the logits' memory.
            exponentials = logits.sub_(peak[:, None]).exp_()
            both = torch.stack([exponentials.sum(-1), target_logits])
            total, target_logits = shard.reduce(both, dist.ReduceOp.SUM)
            log_normaliser = peak + total.log()
            sums[0] += (log_normaliser - target_logits).sum()
            sums[1] += log_normaliser.square().sum()
            if grad_hidden is not None and grad_weight is not None:
                # d (-log p(target)) / d logits = p - e_target; d log Z ^ 2 / d logits = 2 log Z p.
                factor = loss.coefficient * (1 + 2 * loss.z_loss_coefficient * log_normaliser)
                grad_logits = exponentials.mul_((factor / total)[:, None])
                shard.add_to_selected(grad_logits, targets[chunk], -loss.coefficient)
                grad_logits = grad_logits.to(weight.dtype)
                torch.mm(grad_logits, weight, out=grad_hidden[chunk])
                add_product(grad_weight, grad_logits, hidden[chunk], first=start == 0)
                del grad_logits
            del logits, exponentials  # Before the next chunk's are made.
        if grad_hidden is not None and grad_weight is not None:
            ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        ctx.mark_non_differentiable(sums)
        return loss.coefficient * (sums[0] + loss.z_loss_coefficient * sums[1]), sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor, _: torch.Tensor) -> tuple[Any, ...]:
        # In place: the gradients are made for one backward pass, and a second one is refused.
        grad_hidden, grad_weight = (each.mul_(grad_loss) for each in ctx.saved_tensors)
        return grad_hidden, grad_weight, *[None] * 6
