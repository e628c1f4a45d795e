"""What each token counts in the loss of a mini-batch."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Aggregation = Literal["token_mean", "sequence_mean", "constant_length"]


def token_coefficients(
    response_lengths: Tensor,
    *,
    aggregation: Aggregation,
    global_tokens: int,
    global_responses: int,
    max_length: int | None = None,
) -> Tensor:
    """The factor c_i of every token of response i, so that sum_i sum_t c_i loss_it is the loss.

    The denominators span the whole mini-batch, over all data-parallel ranks and micro-batches;
    then the sums of the shares are the loss, however the mini-batch is dealt.

    - `sequence_mean`: mean over a response's tokens, then over responses (ResRL,
      arXiv 2605.00380; GRPO, arXiv 2402.03300): 1 / (length_i * global_responses).
    - `token_mean`: mean over all tokens (DAPO, arXiv 2503.14476): 1 / global_tokens.
    - `constant_length`: sum over a response's tokens, over a length that is the same for all
      (Dr.GRPO, arXiv 2503.20783), then mean over responses: 1 / (max_length * global_responses).

    Args:
        response_lengths: [B] integer, tokens of the responses of this share; B may be 0.
        aggregation: One of the three above.
        global_tokens: Response tokens of the whole mini-batch.
        global_responses: Responses of the whole mini-batch, empty ones included.
        max_length: Most tokens that a response can have; only `constant_length` needs it.

    Returns:
        [B] float64 on the device of the lengths; 0 for responses without tokens.

    Raises:
        ValueError: The denominator needed is not positive or not given, or smaller than this share;
            lengths that are no counts; unknown aggregation.
    """
    _check_lengths(response_lengths)
    _check_denominators(response_lengths, aggregation, global_tokens, global_responses)
    lengths = response_lengths.double()
    if aggregation == "sequence_mean":
        coefficients = 1.0 / (lengths * global_responses)
    elif aggregation == "constant_length":
        if max_length is None or max_length <= 0:
            raise ValueError(
                f"max_length is {max_length}, the denominator of constant_length; at least 1 is "
                "right"
            )
        coefficients = torch.full_like(lengths, 1.0 / (max_length * global_responses))
    else:
        coefficients = torch.full_like(lengths, 1.0 / global_tokens)
    return coefficients.masked_fill(response_lengths == 0, 0.0)


def _check_lengths(lengths: Tensor) -> None:
    if lengths.dim() != 1:
        raise ValueError(
            f"response_lengths has shape {list(lengths.shape)}; one number per response is right"
        )
    if lengths.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"response_lengths has dtype {lengths.dtype}; int64 is right")
    negative = (lengths < 0).nonzero().flatten().tolist()
    if negative:
        first = negative[0]
        raise ValueError(f"response_lengths[{first}] is {int(lengths[first])}; at least 0 is right")


def _check_denominators(
    lengths: Tensor, aggregation: str, global_tokens: int, global_responses: int
) -> None:
    needed = {
        "token_mean": "global_tokens",
        "sequence_mean": "global_responses",
        "constant_length": "global_responses",
    }
    if aggregation not in needed:
        raise ValueError(
            f"aggregation is {aggregation!r}; one of {', '.join(get_args(Aggregation))} is right"
        )
    given = {"global_tokens": global_tokens, "global_responses": global_responses}
    name = needed[aggregation]
    if given[name] <= 0:
        raise ValueError(
            f"{name} is {given[name]}, the denominator of {aggregation}: nothing to average"
        )
    here = int(lengths.sum())
    if here > global_tokens:
        raise ValueError(
            f"global_tokens is {global_tokens}, but the {len(lengths)} responses here have {here}; "
            "count the tokens of the whole mini-batch"
        )
    if len(lengths) > global_responses:
        raise ValueError(
            f"global_responses is {global_responses}, but {len(lengths)} responses are here; "
            "count the responses of the whole mini-batch"
        )
