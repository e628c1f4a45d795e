"""Comparing a server's greedy continuation with the trainer's."""

from __future__ import annotations

from megatron_resrl.rollout.weight_sync.verify import first_difference


def _token(token: int, log_prob: float, *others: tuple[int, float]) -> dict:
    top = [{"token_id": t, "logprob": p} for t, p in ((token, log_prob), *others)]
    return {"token_id": token, "logprob": log_prob, "top_logprobs": top}


def test_first_difference_is_none_for_close_log_probs():
    content = [_token(5, -0.10000), _token(6, -0.20000)]
    assert first_difference(content, [5, 6], [-0.10005, -0.2], 1e-4) is None


def test_first_difference_names_a_log_prob_beyond_the_tolerance():
    content = [_token(5, -0.1), _token(6, -0.2)]
    found = first_difference(content, [5, 6], [-0.1, -0.21], 1e-4)
    assert found.startswith("token 1 is 6 with log-prob -0.20000")


def test_first_difference_accepts_another_token_in_a_tie_alone():
    clear = [_token(5, -0.1, (7, -3.0))]
    tie = [_token(5, -0.69310, (7, -0.69315))]
    assert "the trainer's is 7" in first_difference(clear, [7], [-0.2], 1e-4)
    assert first_difference(tie, [7], [-0.69315], 1e-4) is None


def test_first_difference_ends_at_a_tie():
    content = [_token(5, -0.69310, (7, -0.69315)), _token(1, -0.5)]
    assert first_difference(content, [7, 2], [-0.69315, -9.0], 1e-4) is None


def test_first_difference_names_another_length():
    assert first_difference([_token(5, -0.1)], [5, 6], [-0.1, -0.1], 1e-4) == (
        "1 tokens instead of 2"
    )
