"""Drawing a token from logits, with random numbers named by sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PretrainedConfig

from megatron_resrl.config.model_place import find_model
from megatron_resrl.errors import InputError
from megatron_resrl.rollout.engine import SamplingParams

_CACHED_NUMBERS = 2**17

TRAINING_STREAM = 0
"""Second part of a training rollout's seed: (run seed, stream, step)."""
EVALUATION_STREAM = 1
"""Second part of an evaluation's seed: (run seed, stream, number of the file)."""


def uniform_numbers(seed: Sequence[int], prompt: int, sample: int, count: int) -> np.ndarray:
    """[count] float64 in [0, 1): the random numbers of one response, one per token."""
    sequence = np.random.SeedSequence([*seed, prompt, sample])
    return np.random.Generator(np.random.Philox(sequence)).random(count)


def draw_tokens(
    logits: torch.Tensor, uniform: torch.Tensor, sampling: SamplingParams
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws one token per row by inverting the cumulative distribution.

    Args:
        logits: [b, V] over the real vocabulary.
        uniform: [b] float64 in [0, 1).
        sampling: Temperature and truncation, in the order of Hugging Face's `generate`:
            temperature, top-k, top-p.

    Returns:
        tokens [b] int64 and their log-probabilities [b] float64 under the truncated distribution
        (under the untruncated one for temperature 0).
    """
    if sampling.temperature == 0:
        tokens = logits.argmax(-1)
        log_probs = logits.double().log_softmax(-1)
        return tokens, log_probs.gather(1, tokens[:, None])[:, 0]
    if logits.is_cuda:
        return _draw_rows(logits, uniform, sampling)
    # A CPU's caches hold what a few rows make, in float64, for the next operation.
    rows = max(1, _CACHED_NUMBERS // logits.shape[1])
    parts = zip(logits.split(rows), uniform.split(rows), strict=True)
    found = [_draw_rows(*part, sampling) for part in parts]
    return torch.cat([each for each, _ in found]), torch.cat([each for _, each in found])


def _draw_rows(
    logits: torch.Tensor, uniform: torch.Tensor, sampling: SamplingParams
) -> tuple[torch.Tensor, torch.Tensor]:
    """`draw_tokens` at a temperature above 0, of all rows at once."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits = truncate(logits / sampling.temperature, sampling)
    weights = logits.sub_(logits.amax(-1, keepdim=True)).exp_()
    # Summed in float64: over a large vocabulary float32 would lose the unlikely tokens.
    cumulative = _running_sum(weights.double())
    total = cumulative[:, -1:]
    # Scaled by the last entry, so that rounding of the sum can never leave a number above it.
    tokens = torch.searchsorted(cumulative, uniform[:, None] * total, right=True)
    tokens = tokens.clamp_max(logits.shape[1] - 1)
    return tokens[:, 0], (weights.gather(1, tokens) / total).log()[:, 0]


def truncate(logits: torch.Tensor, sampling: SamplingParams) -> torch.Tensor:
    """Sets the logits outside the top-k and the top-p nucleus to -inf. [b, V] -> [b, V]."""
    if 0 < sampling.top_k < logits.shape[1]:
        smallest_kept = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest_kept, float("-inf"))
    if sampling.top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True)
        mass = _running_sum(ordered.softmax(-1))
        # A token stays if the mass before it has not reached top_p; the first always does.
        outside = mass - ordered.softmax(-1) >= sampling.top_p
        ordered = ordered.masked_fill(outside, float("-inf"))
        logits = torch.empty_like(logits).scatter_(1, order, ordered)
    return logits


def _running_sum(values: torch.Tensor) -> torch.Tensor:
    """Cumulative sums of the last dimension, [b, n].

    On CUDA `torch.cumsum` adds in the order in which threads finish, which torch refuses where
    `precision.deterministic` is set.
    """
    if values.is_cuda and torch.are_deterministic_algorithms_enabled():
        return sum_by_blocks(values)
    return values.cumsum(-1)


def sum_by_blocks(values: torch.Tensor, width: int = 256) -> torch.Tensor:
    """Cumulative sums whose order is fixed: products of blocks with a triangle of ones.

    Args:
        values: [b, n] floating point.
        width: Columns of a block.

    Returns:
        [b, n].
    """
    rows, columns = values.shape
    blocks = torch.nn.functional.pad(values, (0, -columns % width)).view(rows, -1, width)
    inside = blocks @ values.new_ones(width, width).triu()
    if blocks.shape[1] > 1:
        # [b, blocks]: what lies before each block.
        before = sum_by_blocks(inside[:, :-1, -1], width)
        inside[:, 1:] += before[..., None]
    return inside.view(rows, -1)[:, :columns]


def default_stop_tokens(
    model_path: str, hf_config: PretrainedConfig, tokenizer: Any
) -> tuple[int, ...]:
    """End-of-sequence ids of the generation config, the model config and the tokenizer together.

    Raises:
        InputError: None of them names one.
    """
    named: list[Any] = [hf_config.eos_token_id, tokenizer.eos_token_id]
    files = find_model(model_path).files
    if (files / "generation_config.json").is_file():
        named.append(GenerationConfig.from_pretrained(files).eos_token_id)
    ids: set[int] = set()
    for value in named:
        ids |= set(value) if isinstance(value, (list, tuple)) else {value} - {None}
    if not ids:
        raise InputError(
            f"model.path {model_path!r} names no end-of-sequence token; set rollout.stop_token_ids"
        )
    return tuple(sorted(ids))
