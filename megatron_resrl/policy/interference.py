"""Inner products of the output layer's gradients of correct and of wrong tokens.

For logits z = W x / T and l = -log p(y), the gradient of W from one token is the outer product of
delta = (p - e_y) / T and x. The inner product of two tokens' gradients is therefore

    <grad_W l1, grad_W l2> = <delta1, delta2> <x1, x2>        (logit factor x representation factor)

exactly, and the gradients themselves are never made. x is what the output layer multiplies: the
state after the final norm. With the states the subspace is made of instead, the representation
factor is the quantity that ResRL's residuals bound (arXiv 2605.00380).

Shapes: P positive tokens, Q negative tokens, N = P + Q, H hidden size, V vocabulary, TP ranks it is
split over, C columns of a vocabulary chunk.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from megatron_resrl.policy.vocabulary import VocabularyShard

# Largest number of logits alive on one rank: 128 MiB as float64.
CHUNK_ELEMENTS = 1 << 24


def representation_factors(x_positive: Tensor, x_negative: Tensor) -> Tensor:
    """Inner products <x+, x-> of all pairs.

    Args:
        x_positive: [P, H] states of positive tokens, any float dtype.
        x_negative: [Q, H] states of negative tokens.

    Returns:
        [P, Q] float64.
    """
    return x_positive.double() @ x_negative.double().T


def representation_cosines(x_positive: Tensor, x_negative: Tensor) -> Tensor:
    """Cosines of the angles between all pairs; 0 with a state that is zero.

    Args:
        x_positive: [P, H] states of positive tokens, any float dtype.
        x_negative: [Q, H] states of negative tokens.

    Returns:
        [P, Q] float64.
    """
    return F.normalize(x_positive.double(), dim=1) @ F.normalize(x_negative.double(), dim=1).T


def logit_factors(
    hidden_positive: Tensor,
    targets_positive: Tensor,
    hidden_negative: Tensor,
    targets_negative: Tensor,
    output_weight: Tensor,
    *,
    vocab_size: int,
    temperature: float = 1.0,
    group: dist.ProcessGroup | None = None,
    chunk_columns: int | None = None,
) -> Tensor:
    """Inner products <delta+, delta-> of all pairs, delta = (p - e_target) / temperature.

    The vocabulary is passed through twice in chunks, first for the normalisers, so that no more
    than a chunk of the distributions exists at once. Logits are float32 (float64 for float64
    weights), the products of the deltas float64.

    Args:
        hidden_positive: [P, H] final hidden states, the same on all ranks of `group`.
        targets_positive: [P] int64 token ids below `vocab_size`.
        hidden_negative: [Q, H] final hidden states, the same on all ranks of `group`.
        targets_negative: [Q] int64 token ids below `vocab_size`.
        output_weight: [V / TP, H], this rank's rows of the output matrix.
        vocab_size: Real size of the vocabulary; rows beyond it are padding and get no mass.
        temperature: Divides the logits.
        group: Tensor-parallel group; None: the vocabulary is whole.
        chunk_columns: Vocabulary entries per chunk; default: as many as `CHUNK_ELEMENTS` allows.

    Returns:
        [P, Q] float64, the same on all ranks.
    """
    hidden_NH = torch.cat((hidden_positive, hidden_negative))
    targets_N = torch.cat((targets_positive, targets_negative))
    chunk_columns = chunk_columns or max(1, CHUNK_ELEMENTS // max(1, len(hidden_NH)))
    shard = VocabularyShard(output_weight, vocab_size, temperature, group)
    chunks = [slice(start, start + chunk_columns) for start in range(0, shard.valid, chunk_columns)]
    # First pass over the vocabulary: the normalisers.
    log_normaliser_N = log_normaliser(shard, hidden_NH, chunks)
    positives = len(hidden_positive)
    factors_PQ = torch.zeros(
        positives, len(hidden_negative), dtype=torch.float64, device=hidden_NH.device
    )
    # Second pass: deltas of one chunk at a time, and their products.
    for chunk in chunks:
        logits_NC = shard.logits(hidden_NH, chunk)
        delta_NC = (logits_NC - log_normaliser_N[:, None]).exp_().double()
        _subtract_one_at(delta_NC, targets_N - (shard.first + chunk.start))
        factors_PQ += delta_NC[:positives] @ delta_NC[positives:].T
    return shard.reduce(factors_PQ, dist.ReduceOp.SUM) / temperature**2


def interference_metrics(
    representation: Tensor,
    logit: Tensor | None,
    weights_negative: Tensor,
    *,
    cosine: Tensor | None = None,
) -> dict[str, float]:
    """Means over all pairs of a positive and a negative token, before and after weighting.

    A negative token's gradient is multiplied by its weight, hence so is every pair it is in. The
    mean weight alone would reduce the interference: `reduction_to_constant` compares with one
    constant weight of the same mean, and is below 1 where small weights lie on the tokens that
    interfere most.

    Args:
        representation: [P, Q] inner products of the states.
        logit: [P, Q] inner products of the logit gradients; None: not measured.
        weights_negative: [Q] weights of the negative tokens.
        cosine: [P, Q] cosines of the states; None: not measured.

    Returns:
        Names and values, nothing where there is no pair:
        `interference/representation`, mean |<x+, x->|; `..._weighted`, the same with weights;
        `interference/reduction`, their ratio; `interference/reduction_to_constant`;
        `interference/representation_cosine`, mean |cosine|;
        and with the logit factor `interference/gradient`, `..._weighted`, `..._signed`,
        `..._signed_weighted`, `..._reduction` of <grad+, grad->. Ratios are 1 where both sides
        are 0.
    """
    if representation.numel() == 0:
        return {}
    weights_Q = weights_negative.double()
    values = _weighted("representation", representation.double().abs(), weights_Q)
    plain, weighted = values["representation"], values["representation_weighted"]
    values["reduction"] = _ratio(weighted, plain)
    values["reduction_to_constant"] = _ratio(weighted, plain * weights_Q.mean())
    if cosine is not None:
        values["representation_cosine"] = cosine.double().abs().mean()
    if logit is not None:
        gradient_PQ = representation.double() * logit.double()
        values |= _weighted("gradient", gradient_PQ.abs(), weights_Q)
        values |= _weighted("gradient_signed", gradient_PQ, weights_Q)
        values["gradient_reduction"] = _ratio(values["gradient_weighted"], values["gradient"])
    numbers = torch.stack(list(values.values())).tolist()
    return {f"interference/{name}": value for name, value in zip(values, numbers, strict=True)}


def _weighted(name: str, pairs_PQ: Tensor, weights_Q: Tensor) -> dict[str, Tensor]:
    return {name: pairs_PQ.mean(), f"{name}_weighted": (pairs_PQ * weights_Q).mean()}


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole == part, torch.ones_like(whole), part / whole)


def log_normaliser(shard: VocabularyShard, hidden_NH: Tensor, chunks: Sequence[slice]) -> Tensor:
    """[N] log of the sum of exp(logits) over the whole vocabulary."""
    local_N = torch.full(
        hidden_NH.shape[:1], float("-inf"), dtype=shard.logits_dtype, device=hidden_NH.device
    )
    for chunk in chunks:
        local_N = torch.logaddexp(local_N, shard.logits(hidden_NH, chunk).logsumexp(1))
    peak_N = shard.reduce(local_N.clone(), dist.ReduceOp.MAX)
    # A rank whose rows are all padding has log 0 and adds nothing.
    total_N = shard.reduce((local_N - peak_N).exp(), dist.ReduceOp.SUM)
    return peak_N + total_N.log()


def _subtract_one_at(delta_NC: Tensor, columns_N: Tensor) -> None:
    """Subtracts 1 in each row's column, where the chunk has it."""
    width = delta_NC.shape[1]
    own_N = (columns_N >= 0) & (columns_N < width)
    columns_N1 = columns_N.clamp(0, width - 1)[:, None]
    delta_NC.scatter_add_(1, columns_N1, -own_N[:, None].to(delta_NC.dtype))
