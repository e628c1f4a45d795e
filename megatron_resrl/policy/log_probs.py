"""Log-probabilities and entropy over a vocabulary split across tensor-parallel ranks.

Logits are made for a chunk of tokens at a time, forward and again backward, so that the
full-vocabulary logits of a batch never exist at once.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from megatron_resrl.policy.vocabulary import VocabularyShard

CHUNK_ELEMENTS = 1 << 26
"""Largest number of logits in a chunk. Two fp32 tensors of a chunk are alive at once forward
(512 MiB), one and a 16-bit copy backward (384 MiB; two more fp32 ones with an entropy's gradient),
where an fp32 sum of the weight's gradient and a product of at most as many elements come on top."""


def vocab_parallel_log_probs(
    hidden: torch.Tensor,
    output_weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    vocab_size: int,
    temperature: float = 1.0,
    group: dist.ProcessGroup | None = None,
    chunk_tokens: int | None = None,
    entropy_gradient: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(target) and the entropy of the distribution, for each token.

    Differentiable in `hidden` and `output_weight`, through the entropy only where asked for. The
    gradient of `hidden` is this rank's share; the caller sums it over `group`.

    Args:
        hidden: [N, H] final hidden states, the same on all ranks of `group`.
        output_weight: [V / TP, H], this rank's rows of the output matrix.
        targets: [N] int64 token ids.
        vocab_size: Real size of the vocabulary; rows beyond it are padding and get no mass.
        temperature: Divides the logits.
        group: Tensor-parallel group; None: the vocabulary is whole.
        chunk_tokens: Tokens per chunk; default: as many as `CHUNK_ELEMENTS` allows.
        entropy_gradient: Make the entropy differentiable; takes more memory backward.

    Returns:
        log_probs [N] and entropy [N] in nats: fp32, or float64 for a float64 output matrix.
    """
    chunk_tokens = chunk_tokens or max(1, CHUNK_ELEMENTS // output_weight.shape[0])
    return _VocabParallelLogProbs.apply(
        hidden, output_weight, targets, vocab_size, temperature, group, chunk_tokens,
        entropy_gradient,
    )  # fmt: skip


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
        entropy_gradient: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        shard = VocabularyShard(weight, vocab_size, temperature, group)
        log_probs = torch.empty(targets.shape, dtype=shard.logits_dtype, device=hidden.device)
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
        ctx.save_for_backward(hidden, weight, targets, log_normaliser, entropy)
        ctx.settings = (vocab_size, temperature, group, chunk_tokens, entropy_gradient)
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy)
        return log_probs, entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_log_probs: torch.Tensor, grad_entropy: torch.Tensor
    ) -> tuple[Any, ...]:
        hidden, weight, targets, log_normaliser, entropy = ctx.saved_tensors
        vocab_size, temperature, group, chunk_tokens, entropy_gradient = ctx.settings
        shard = VocabularyShard(weight, vocab_size, temperature, group)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = empty_total(weight, targets, shard.logits_dtype)
        for start in range(0, len(targets), chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            # log p, and below -p, in the same memory.
            grad_logits = shard.logits(hidden[chunk]).sub_(log_normaliser[chunk, None])
            from_entropy = None
            if entropy_gradient:
                factor = grad_entropy[chunk] / temperature
                from_entropy = _entropy_gradient(grad_logits, entropy[chunk], factor)
            # d log p(target) / d logits = (e_target - p) / temperature.
            grad_logits.exp_().neg_()
            shard.add_to_selected(grad_logits, targets[chunk])
            grad_logits *= (grad_log_probs[chunk] / temperature)[:, None]
            if from_entropy is not None:
                grad_logits += from_entropy
            grad_logits = grad_logits.to(weight.dtype)
            torch.mm(grad_logits, weight, out=grad_hidden[chunk])
            add_product(grad_weight, grad_logits, hidden[chunk], first=start == 0)
            del from_entropy, grad_logits  # Before the next chunk's are made.
        return (grad_hidden, grad_weight.to(weight.dtype), *[None] * 6)


def _entropy_gradient(
    log_p: torch.Tensor, entropy: torch.Tensor, factor: torch.Tensor
) -> torch.Tensor:
    """[n, V / TP] factor x d entropy / d (logits / temperature) = -factor p (log p + entropy)."""
    # Padding has p = 0 and log p = -inf; their product must count as 0.
    gradient = log_p.clamp_min(torch.finfo(log_p.dtype).min).add_(entropy[:, None])
    return gradient.mul_(log_p.exp()).mul_(-factor[:, None])


def empty_total(weight: torch.Tensor, targets: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[V / TP, H] for the sum that `add_product` makes; zeros where there is no target to add."""
    make = torch.empty_like if len(targets) else torch.zeros_like
    return make(weight, dtype=dtype)


def add_product(
    total: torch.Tensor, grad_logits: torch.Tensor, hidden: torch.Tensor, *, first: bool
) -> None:
    """total [V / TP, H] += grad_logits [n, V / TP] transposed @ hidden [n, H].

    A product of all rows at once would be as large as the weight.

    Args:
        total: Changed in place.
        grad_logits: Of a chunk, in the hidden states' type.
        hidden: Of a chunk.
        first: What `total` holds has no meaning yet.
    """
    block = max(1, CHUNK_ELEMENTS // hidden.shape[1])
    parts = zip(total.split(block), grad_logits.split(block, dim=1), strict=True)
    for part, part_logits in parts:
        if part.dtype == hidden.dtype:
            torch.addmm(part, part_logits.T, hidden, beta=0 if first else 1, out=part)
        elif first:
            part.copy_(part_logits.T @ hidden)
        else:
            part += part_logits.T @ hidden
