"""cuDNN's fused attention, from its definition: one sequence and one matrix of scores at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

LAYOUTS: dict[Any, str] = {}
"""Transformer Engine's number of a layout -> its name; filled in by `install`."""
MASKS: dict[Any, str] = {}
"""The same of masks."""

Places = tuple[Any, Any]
"""Index of one sequence's queries and of its keys, each giving [tokens, heads, channels]."""


def fused_attn_fwd(
    max_q: int,
    max_kv: int,
    training: bool,
    scale: float,
    dropout: float,
    fill: bool,
    layout: Any,
    bias_type: Any,
    mask: Any,
    softmax_type: Any,
    window: Any,
    cu_q: torch.Tensor,
    cu_kv: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dtype: Any,
    padded_q: torch.Tensor | None,
    padded_kv: torch.Tensor | None,
    *rest: Any,
) -> list[torch.Tensor]:
    """The output like `q`, and the softmax's log-sum-exp: [b, h, s, 1], packed [t, h, 1]."""
    name, mask_name = LAYOUTS[layout], _supported(MASKS[mask], window)
    packed = name.startswith("thd")
    out, repeat = torch.zeros_like(q), q.shape[-2] // k.shape[-2]
    random_state = torch.randint(1 << 31, (2,)) if dropout else torch.zeros(2, dtype=torch.int64)
    kept = _Kept(dropout if training else 0.0, random_state)
    log_sums = torch.zeros(q.shape[:-1], dtype=torch.float32)
    for queries, keys in _sequences(name, mask_name, (cu_q, padded_q), (cu_kv, padded_kv), q):
        scores = _scores(q[queries], k[keys], scale, mask_name)
        values = v[keys].repeat_interleave(repeat, 1).float()
        weights = scores.softmax(-1)
        weights = weights * kept.factors(weights)
        out[queries] = torch.einsum("hqk,khd->qhd", weights, values).to(q.dtype)
        log_sums[queries] = scores.logsumexp(-1).t()
    log_sums = log_sums if packed else log_sums.permute(1, 2, 0).contiguous()
    return [out, log_sums[..., None], random_state]


def fused_attn_bwd(
    max_q: int,
    max_kv: int,
    scale: float,
    dropout: float,
    fill: bool,
    layout: Any,
    bias_type: Any,
    mask: Any,
    softmax_type: Any,
    window: Any,
    deterministic: bool,
    cu_q: torch.Tensor,
    cu_kv: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    o: torch.Tensor,
    d_o: torch.Tensor,
    dtype: Any,
    dqkv_dtype: Any,
    saved: list[torch.Tensor],
    padded_q: torch.Tensor | None,
    padded_kv: torch.Tensor | None,
    *rest: Any,
) -> list[torch.Tensor | None]:
    """From the output and the log-sum-exp given: in a ring they are those of all ranks' keys."""
    name, mask_name = LAYOUTS[layout], _supported(MASKS[mask], window)
    kept = _Kept(dropout, saved[1])
    log_sums = saved[0][..., 0]
    log_sums = log_sums if name.startswith("thd") else log_sums.permute(2, 0, 1)
    o, d_o = o.view_as(q), d_o.view_as(q)
    groups, repeat = k.shape[-2], q.shape[-2] // k.shape[-2]
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for queries, keys in _sequences(name, mask_name, (cu_q, padded_q), (cu_kv, padded_kv), q):
        scores = _scores(q[queries], k[keys], scale, mask_name)
        weights = (scores - log_sums[queries].t()[..., None]).exp()
        gradient = d_o[queries].float()
        own_k, own_v = (t[keys].repeat_interleave(repeat, 1).float() for t in (k, v))
        drawn = (gradient * o[queries].float()).sum(-1).t()[..., None]
        shares = kept.factors(weights)
        inner = torch.einsum("qhd,khd->hqk", gradient, own_v) * shares
        inner = weights * (inner - drawn) * scale
        dq[queries] = torch.einsum("hqk,khd->qhd", inner, own_k).to(q.dtype)
        shared = (len(own_k), groups, repeat, -1)
        key_gradient = torch.einsum("hqk,qhd->khd", inner, q[queries].float())
        dk[keys] = key_gradient.view(shared).sum(2).to(k.dtype)
        value_gradient = torch.einsum("hqk,qhd->khd", weights * shares, gradient)
        dv[keys] = value_gradient.view(shared).sum(2).to(v.dtype)
    return [dq, dk, dv, None, None]


class _Kept:
    """Dropout of attention weights, drawn alike forward and backward, sequence by sequence."""

    def __init__(self, dropout: float, random_state: torch.Tensor) -> None:
        self._dropout = dropout
        self._generator = torch.Generator().manual_seed(int(random_state[0]))

    def factors(self, weights: torch.Tensor) -> torch.Tensor | float:
        """0 for what is dropped, 1 / (1 - dropout) for what is kept."""
        if not self._dropout:
            return 1.0
        kept = torch.rand(weights.shape, generator=self._generator) >= self._dropout
        return kept / (1 - self._dropout)


def _supported(mask: str, window: Any) -> str:
    """The mask, if no window is asked for."""
    if window is not None and tuple(window) not in ((-1, -1), (-1, 0)):
        raise NotImplementedError(f"attention to a window of {window} is not answered on a CPU")
    return mask


def _sequences(
    layout: str,
    mask: str,
    queries: tuple[torch.Tensor, torch.Tensor | None],
    keys: tuple[torch.Tensor, torch.Tensor | None],
    q: torch.Tensor,
) -> Iterator[Places]:
    """Where each sequence lies: of packed ones (starts of real, starts of padded sequences)."""
    if layout.startswith("thd"):
        yield from zip(_spans(*queries), _spans(*keys), strict=True)
    elif layout.startswith("sb") and "padding" not in mask:
        yield from (((slice(None), row), (slice(None), row)) for row in range(q.shape[1]))
    else:
        raise NotImplementedError(f"attention of {layout} with {mask} is not answered on a CPU")


def _spans(starts: torch.Tensor, padded: torch.Tensor | None) -> list[slice]:
    begins = (starts if padded is None else padded).tolist()
    lengths = starts.diff().tolist()
    return [slice(begin, begin + length) for begin, length in zip(begins, lengths, strict=False)]


def _scores(q: torch.Tensor, k: torch.Tensor, scale: float, mask: str) -> torch.Tensor:
    """[heads, queries, keys] fp32."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = torch.einsum("qhd,khd->hqk", q.float(), k.float()) * scale
    if "causal" not in mask:
        return scores
    rows, columns = scores.shape[1:]
    diagonal = columns - rows if "bottom_right" in mask else 0
    allowed = torch.ones(rows, columns, dtype=torch.bool).tril(diagonal)
    return scores.masked_fill(~allowed, float("-inf"))


FUNCTIONS = (fused_attn_fwd, fused_attn_bwd)
