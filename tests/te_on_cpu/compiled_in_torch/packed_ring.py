"""What a ring of context-parallel ranks does with packed sequences, each of two halves per rank."""

from __future__ import annotations

import torch


def thd_read_half_tensor(tensor: torch.Tensor, starts: torch.Tensor, half: int) -> torch.Tensor:
    """The first (0) or second (1) half of every sequence."""
    return tensor.index_select(0, _halves(starts)[half])


def thd_read_second_half_lse(
    log_sums: torch.Tensor, starts: torch.Tensor, packed: bool, length: int
) -> torch.Tensor:
    """[heads, half of the tokens]."""
    assert packed
    return log_sums[:, _halves(starts)[1]]


def thd_second_half_lse_correction(
    log_sums: torch.Tensor, step: torch.Tensor, starts: torch.Tensor, packed: bool
) -> None:
    """Adds the keys of one step of the ring."""
    assert packed
    second = _halves(starts)[1]
    log_sums[:, second] = torch.logaddexp(log_sums[:, second], step)


def thd_out_correction(
    out: torch.Tensor,
    step: torch.Tensor,
    log_sums: torch.Tensor,
    step_log_sums: torch.Tensor,
    starts: torch.Tensor,
    only_second_half: bool,
    packed: bool,
) -> None:
    """Adds one step's output, weighted by its share of the softmax."""
    assert packed
    rows = _halves(starts)[1] if only_second_half else torch.arange(len(out))
    share = (step_log_sums - log_sums[:, rows]).exp().t()[..., None]
    out[rows] += (step.view(-1, *out.shape[1:]) * share).to(out.dtype)


def thd_grad_correction(
    grad: torch.Tensor, step: torch.Tensor, starts: torch.Tensor, first: str, second: str
) -> None:
    """Copies or adds one step's gradient to each half, or leaves it ("none")."""
    halves = [
        (rows, how)
        for rows, how in zip(_halves(starts), (first, second), strict=True)
        if how != "none"
    ]
    # A step of one half brings the rows of that half only.
    source = step if len(halves) == 1 else step[torch.cat([rows for rows, _ in halves])]
    parts = source.split([len(rows) for rows, _ in halves])
    for (rows, how), part in zip(halves, parts, strict=True):
        part = part.view(-1, *grad.shape[1:])
        grad[rows] = part if how == "copy" else grad[rows] + part


def _halves(starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the tokens in the first and in the second half of their sequence."""
    spans = list(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True))
    first = [i for begin, end in spans for i in range(begin, (begin + end) // 2)]
    second = [i for begin, end in spans for i in range((begin + end) // 2, end)]
    return torch.tensor(first), torch.tensor(second)


FUNCTIONS = (
    thd_read_half_tensor,
    thd_read_second_half_lse,
    thd_second_half_lse_correction,
    thd_out_correction,
    thd_grad_correction,
)
