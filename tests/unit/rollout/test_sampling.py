"""Drawing tokens: distribution, truncation, determinism."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from megatron_resrl.rollout.engine import SamplingParams
from megatron_resrl.rollout.sampling import (
    default_stop_tokens,
    draw_tokens,
    sum_by_blocks,
    uniform_numbers,
)


def _params(**changes: float) -> SamplingParams:
    return SamplingParams(**({"max_new_tokens": 8, "stop_token_ids": (1,)} | changes))


@given(
    seed=st.integers(0, 1000),
    temperature=st.floats(0.2, 2.0),
    top_k=st.integers(0, 40),
    top_p=st.floats(0.05, 1.0),
)
@settings(max_examples=50, deadline=None)
def test_draw_tokens_has_log_probs_of_hugging_face_warpers(seed, temperature, top_k, top_p):
    logits = torch.randn(16, 40, generator=torch.Generator().manual_seed(seed)).double()
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    warpers.append(TopPLogitsWarper(top_p))
    expected = warpers(None, logits).log_softmax(-1)
    uniform = torch.rand(16, generator=torch.Generator().manual_seed(seed + 1)).double()
    tokens, log_probs = draw_tokens(
        logits, uniform, _params(temperature=temperature, top_k=top_k, top_p=top_p)
    )
    # float64 on both sides; a token that the reference excludes would be -inf there.
    torch.testing.assert_close(
        log_probs, expected.gather(1, tokens[:, None])[:, 0], atol=1e-9, rtol=0
    )


@pytest.mark.parametrize("changes", [{}, {"temperature": 0.7, "top_k": 900, "top_p": 0.95}])
def test_draw_tokens_draws_rows_as_if_alone(changes):
    # More numbers than are drawn from at once, in rows that fill no vector of the processor.
    logits = torch.randn(37, 8191, generator=torch.Generator().manual_seed(0))
    uniform = torch.rand(37, generator=torch.Generator().manual_seed(1)).double()
    tokens, log_probs = draw_tokens(logits, uniform, _params(**changes))
    for row in range(37):
        alone = draw_tokens(logits[row : row + 1], uniform[row : row + 1], _params(**changes))
        assert torch.equal(tokens[row : row + 1], alone[0])
        assert torch.equal(log_probs[row : row + 1], alone[1])


def test_draw_tokens_follows_the_distribution():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, float("-inf")])
    uniform = (torch.arange(10000, dtype=torch.float64) + 0.5) / 10000
    tokens, _ = draw_tokens(logits.expand(10000, -1), uniform, _params())
    share = torch.bincount(tokens, minlength=5) / 10000
    # Inverting the cumulative distribution on an even grid is exact up to one grid step.
    torch.testing.assert_close(share, logits.softmax(-1), atol=1.5e-4, rtol=0)


@pytest.mark.parametrize("uniform", [0.0, np.nextafter(1.0, 0.0)])
def test_draw_tokens_at_the_ends_of_the_unit_interval(uniform):
    logits = torch.tensor([[float("-inf"), 0.0, 1.0, float("-inf")]])
    tokens, log_probs = draw_tokens(logits, torch.tensor([uniform]).double(), _params())
    assert tokens.item() in (1, 2)
    assert torch.isfinite(log_probs).all()


def test_draw_tokens_at_temperature_zero_is_greedy():
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    tokens, log_probs = draw_tokens(logits, torch.tensor([0.99]).double(), _params(temperature=0))
    assert tokens.item() == 1
    torch.testing.assert_close(log_probs, logits.double().log_softmax(-1)[:, 1])


def test_uniform_numbers_follow_seed_prompt_and_sample():
    assert (uniform_numbers((0, 1), 2, 3, 5) == uniform_numbers((0, 1), 2, 3, 5)).all()
    # A longer response begins with the same numbers.
    assert (uniform_numbers((0, 1), 2, 3, 9)[:5] == uniform_numbers((0, 1), 2, 3, 5)).all()
    streams = [(0, 1), (0, 2), (1, 1)]
    firsts = {
        float(uniform_numbers(seed, prompt, sample, 1)[0])
        for seed in streams
        for prompt in range(3)
        for sample in range(3)
    }
    assert len(firsts) == 27


class _Tokenizer:
    def __init__(self, eos_token_id):
        self.eos_token_id = eos_token_id


def test_default_stop_tokens_are_those_of_all_three_files(tmp_path):
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    config = LlamaConfig(eos_token_id=2)
    assert default_stop_tokens(str(tmp_path), config, _Tokenizer(9)) == (2, 7, 8, 9)


def test_default_stop_tokens_need_an_end_of_sequence_token(tmp_path):
    with pytest.raises(ValueError, match=r"rollout\.stop_token_ids"):
        default_stop_tokens(str(tmp_path), LlamaConfig(eos_token_id=None), _Tokenizer(None))


@pytest.mark.parametrize("columns", [1, 3, 4, 5, 16, 17, 70])
def test_sum_by_blocks_equals_cumsum(columns):
    values = torch.rand(3, columns, dtype=torch.float64)
    torch.testing.assert_close(sum_by_blocks(values, 4), values.cumsum(1), rtol=1e-14, atol=0)


def test_draw_tokens_needs_no_cumsum_on_cuda_if_deterministic(monkeypatch):
    logits, uniform = torch.randn(9, 700), torch.rand(9, dtype=torch.float64)
    params = _params(top_p=0.9)
    expected, expected_log_probs = draw_tokens(logits, uniform, params)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True))
    # torch refuses it there: "cumsum_cuda_kernel does not have a deterministic implementation".
    monkeypatch.setattr(torch.Tensor, "cumsum", None)
    torch.use_deterministic_algorithms(True)
    try:
        tokens, log_probs = draw_tokens(logits, uniform, params)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(tokens, expected)
    torch.testing.assert_close(log_probs, expected_log_probs, rtol=1e-6, atol=1e-6)
