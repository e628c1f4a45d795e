"""Entropic Wasserstein-1 distances between spans of tokens, each a cloud of hidden states.

Shapes: T tokens of a response, H hidden size, S spans of a response, W tokens of the longest span
(padded); P pairs of spans.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_resrl.token_weighting.options import ShearOptions

PAIR_ELEMENTS = 2**25
"""Most token-token distances of the pairs that are solved at once; a few copies are held."""


def span_starts(tokens: int, span: int, stride: int) -> range:
    """First tokens of a response's spans; the last span is the first one that reaches the end."""
    if tokens == 0:
        return range(0)
    beyond = max(tokens - span, 0)
    return range(0, -(-beyond // stride) * stride + 1, stride)


def span_tokens(tokens: int, span: int, stride: int) -> tuple[Tensor, Tensor]:
    """The tokens of a response's spans.

    Args:
        tokens: Of the response, T.
        span: Tokens of a span; fewer where the response ends.
        stride: Tokens between starts.

    Returns:
        [S, W] int64 indices, in the place of padding the span's last token; [S] int64 lengths.
    """
    start_S = torch.tensor(span_starts(tokens, span, stride), dtype=torch.int64)
    length_S = (tokens - start_S).clamp(max=span)
    offset_W = torch.arange(min(span, tokens))
    index_SW = start_S[:, None] + torch.minimum(offset_W, length_S[:, None] - 1)
    return index_SW, length_S


def sinkhorn_cost(
    cost_PWW: Tensor, length_P: Tensor, other_length_P: Tensor, *, epsilon: float, iterations: int
) -> Tensor:
    """Transport cost of the entropic plan between uniform distributions (arXiv 1306.0895).

    In the log domain: f = -eps log sum_j b_j exp((g_j - C_ij) / eps), then g likewise, from g = 0.
    The plan is a_i b_j exp((f_i + g_j - C_ij) / eps), and the cost its sum with C: between W_1 and
    W_1 + eps log W where it has converged.

    Args:
        cost_PWW: [P, W, W'] float, at least 0; padding is any finite number.
        length_P: [P] int64 on the same device: points of the first distribution.
        other_length_P: [P] int64: of the second.
        epsilon: Weight of the entropy, in the unit of the costs.
        iterations: How often both potentials are made anew.

    Returns:
        [P] of the dtype of the costs.
    """
    log_a_PW1 = _log_uniform(length_P, cost_PWW.shape[1], cost_PWW.dtype).unsqueeze(2)
    log_b_P1W = _log_uniform(other_length_P, cost_PWW.shape[2], cost_PWW.dtype).unsqueeze(1)
    scaled_PWW = cost_PWW / -epsilon
    # Of the potentials, in units of epsilon.
    g_P1W = torch.zeros_like(log_b_P1W)
    f_PW1 = torch.zeros_like(log_a_PW1)
    for _ in range(iterations):
        f_PW1 = -torch.logsumexp(scaled_PWW + (g_P1W + log_b_P1W), dim=2, keepdim=True)
        g_P1W = -torch.logsumexp(scaled_PWW + (f_PW1 + log_a_PW1), dim=1, keepdim=True)
    plan_PWW = torch.exp(scaled_PWW + (f_PW1 + log_a_PW1) + (g_P1W + log_b_P1W))
    return (plan_PWW * cost_PWW).sum((1, 2))


def nearest_opposing(
    correct: Sequence[Tensor],
    incorrect: Sequence[Tensor],
    settings: ShearOptions,
    share: slice = slice(None),
) -> tuple[list[Tensor], list[Tensor]]:
    """Distance of each span to the nearest one of any response of the other side.

    A distance serves both of its spans, so that each pair is solved once.

    Args:
        correct: [T, H] float states of each correct response, none empty.
        incorrect: The same of the incorrect ones.
        settings: See there.
        share: Of the pairs of spans of two responses, those that are solved here; the smallest of
            all shares is the distance.

    Returns:
        [S] fp32 for each response of either side, infinite for spans that are in no pair.
    """
    cut_of = {
        tokens: span_tokens(tokens, settings.span, settings.stride)
        for tokens in {len(states) for states in (*correct, *incorrect)}
    }

    def unknown(states: Tensor) -> Tensor:
        spans = len(cut_of[len(states)][1])
        return states.new_full((spans,), torch.inf, dtype=torch.float32)

    near_correct, near_incorrect = [unknown(x) for x in correct], [unknown(x) for x in incorrect]
    for own, near_own in zip(correct, near_correct, strict=True):
        for other, near_other in zip(incorrect, near_incorrect, strict=True):
            cuts = cut_of[len(own)], cut_of[len(other)]
            _compare(own, other, *cuts, near_own, near_other, settings, share)
    return near_correct, near_incorrect


def _compare(
    states_TH: Tensor,
    other_TH: Tensor,
    cut: tuple[Tensor, Tensor],
    other_cut: tuple[Tensor, Tensor],
    near_S: Tensor,
    other_near_S: Tensor,
    settings: ShearOptions,
    share: slice,
) -> None:
    """Lowers the distances of two responses' spans to those between them, in place."""
    cost_TT = euclidean(states_TH, other_TH)
    place = cost_TT.device
    (index_SW, length_S), (other_index_SW, other_length_S) = (
        (index.to(place), length.to(place)) for index, length in (cut, other_cut)
    )
    pair_P = torch.arange(len(length_S) * len(other_length_S), device=place)[share]
    at_once = max(1, PAIR_ELEMENTS // (index_SW.shape[1] * other_index_SW.shape[1]))
    for part_P in pair_P.split(at_once):
        own_P, other_P = part_P // len(other_length_S), part_P % len(other_length_S)
        cost_PWW = cost_TT[index_SW[own_P][:, :, None], other_index_SW[other_P][:, None, :]]
        lengths = length_S[own_P], other_length_S[other_P]
        far_P = sinkhorn_cost(
            cost_PWW, *lengths, epsilon=settings.epsilon, iterations=settings.iterations
        )
        near_S.scatter_reduce_(0, own_P, far_P, "amin")
        other_near_S.scatter_reduce_(0, other_P, far_P, "amin")


def euclidean(states_TH: Tensor, other_TH: Tensor) -> Tensor:
    """[T, T'] fp32 Euclidean distances, by inner products in float64.

    In float32 the difference of squares would leave 3e-4 of the norm between equal states, which
    the first tokens of responses to one prompt are.
    """
    x, y = states_TH.double(), other_TH.double()
    square_TT = (x * x).sum(1)[:, None] + (y * y).sum(1)[None, :] - 2 * x @ y.T
    return square_TT.clamp_min(0).sqrt().float()


def token_maxima(near_S: Tensor, tokens: int, settings: ShearOptions) -> Tensor:
    """[T] fp32: of each token the largest distance among the spans that it is in.

    Args:
        near_S: [S] fp32 of a response's spans.
        tokens: Of the response, T.
        settings: `span` and `stride`, no more than the span.
    """
    index_SW, _ = span_tokens(tokens, settings.span, settings.stride)
    index_SW = index_SW.to(near_S.device)
    return near_S.new_zeros(tokens).scatter_reduce_(
        0, index_SW.flatten(), near_S[:, None].expand_as(index_SW).flatten(), "amax"
    )


def _log_uniform(length_P: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """[P, W]: -log of the length on the first places, minus infinity on padding."""
    inside_PW = torch.arange(width, device=length_P.device) < length_P[:, None]
    log_P1 = -length_P[:, None].to(dtype).log()
    return torch.where(inside_PW, log_P1, -torch.inf)
