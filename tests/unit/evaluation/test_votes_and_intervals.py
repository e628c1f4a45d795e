"""Votes, diversity and intervals, each against another computation."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_resrl.config.schema import RewardConfig
from megatron_resrl.evaluation.answers import answer_reader
from megatron_resrl.evaluation.bootstrap import mean_intervals, resample_weights
from megatron_resrl.evaluation.diversity import distinct_answers, distinct_n
from megatron_resrl.evaluation.majority import consensus_at_k
from megatron_resrl.evaluation.metrics import pass_hat_k, question_values

ROUNDING = 1e-12
"""Sums of at most some hundred floats near 1."""


def vote(answers, correct) -> float:
    """Of one subset, as it is defined: the verdict of the most frequent answers."""
    counts = Counter(answer for answer in answers if answer)
    if not counts:
        return 0.0
    most = max(counts.values())
    winners = [answer for answer, count in counts.items() if count == most]
    return statistics.mean(correct[answer] for answer in winners)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c", "d", ""]), min_size=1, max_size=8), st.data())
def test_consensus_is_the_mean_vote_over_all_subsets(answers, data):
    correct = {answer: data.draw(st.booleans()) for answer in "abcd"}
    verdicts = [correct.get(answer, False) for answer in answers]
    for k in range(1, len(answers) + 1):
        expected = statistics.mean(
            float(vote(subset, correct)) for subset in itertools.combinations(answers, k)
        )
        assert consensus_at_k(answers, verdicts, k) == pytest.approx(expected, abs=ROUNDING)


def test_consensus_of_many_samples_agrees_with_draws():
    generator = np.random.default_rng(0)
    answers = list(generator.choice(["a", "b", "c", "d", ""], size=64, p=[0.3, 0.3, 0.2, 0.1, 0.1]))
    verdicts = [answer == "a" for answer in answers]
    draws = 20_000
    votes = [
        float(vote(generator.choice(answers, 9, replace=False), {"a": 1, "b": 0, "c": 0, "d": 0}))
        for _ in range(draws)
    ]
    error = statistics.stdev(votes) / draws**0.5
    # Four standard errors of the draws.
    assert consensus_at_k(answers, verdicts, 9) == pytest.approx(np.mean(votes), abs=4 * error)


def test_consensus_counts_a_half_graded_answer_by_its_share():
    assert consensus_at_k(["a", "a", "b"], [True, False, False], 3) == 0.5
    with pytest.raises(ValueError, match="cons@3 of 2 samples: give a k from 1 to 2"):
        consensus_at_k(["a", "b"], [True, False], 3)


@pytest.mark.parametrize("samples", range(1, 8))
def test_pass_hat_k_is_the_share_of_subsets_that_are_all_right(samples):
    for correct in range(samples + 1):
        outcomes = [True] * correct + [False] * (samples - correct)
        for k in range(1, samples + 1):
            subsets = list(itertools.combinations(outcomes, k))
            share = sum(map(all, subsets)) / len(subsets)
            assert pass_hat_k(samples, correct, k) == pytest.approx(share, abs=ROUNDING)


def test_distinct_n_counts_word_ngrams_of_all_texts():
    texts = ["the cat sat", "the cat ran off", ""]
    assert distinct_n(texts, 1) == 5 / 7
    assert distinct_n(texts, 2) == 4 / 5
    assert distinct_n(texts, 4) == 1.0
    assert distinct_n(texts, 5) == 0.0
    assert distinct_answers(["1", "", "2", "1"]) == 2


def test_answer_reader_reads_what_the_verifier_reads():
    math = answer_reader(RewardConfig())
    assert math("So \\boxed{ \\dfrac{1}{2} }.") == math("The answer is $\\frac12$.")
    assert math("I do not know") == ""
    assert answer_reader(RewardConfig(function="integer"))("1,234 or 5.0 or -12") == "-12"
    assert answer_reader(RewardConfig(function="code")) is None


def test_question_values_name_votes_only_of_several_samples():
    scores = [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    answers = [["4", "5", "4"], ["", "", "6"]]
    values = question_values(scores, (1, 2), answers, [["a b", "a b", "c"], ["a", "b", "c"]])
    expected = {
        "avg@3": [2 / 3, 0],
        "pass@1": [2 / 3, 0],
        "pass@2": [1, 0],
        "pass^2": [1 / 3, 0],
        # Of the pairs 4 5, 4 4 and 5 4 two are ties.
        "cons@2": [2 / 3, 0],
        "cons@3": [1, 0],
        "distinct_answers": [2, 1],
        "distinct-1": [3 / 5, 1],
        "distinct-2": [1 / 2, 0],
        "distinct-4": [0, 0],
    }
    assert values.keys() == expected.keys()
    for name, several in expected.items():
        assert values[name] == pytest.approx(several, abs=ROUNDING), name
    assert list(question_values([[1.0]], (1,), [["4"]], [["a"]])) == ["avg@1", "pass@1"]


def test_resample_weights_have_the_variance_of_a_mean():
    values = np.array([0.0, 1.0, 4.0, 9.0])
    weights = resample_weights(np.random.default_rng(0), 4, 200_000)
    assert weights.sum(axis=1) == pytest.approx(1)
    means = weights @ values
    # Standard error of the variance of 200,000 draws: below 0.5 % of it; four of them.
    assert means.var() == pytest.approx(values.var(ddof=1) / 4, rel=0.02)
    assert (resample_weights(np.random.default_rng(0), 1, 3) == 1).all()


def test_mean_intervals_are_those_of_the_normal_approximation():
    generator = np.random.default_rng(1)
    values = generator.random((2, 400))
    intervals = mean_intervals(values, (7,))
    assert intervals == mean_intervals(values, (7,))
    assert intervals != mean_intervals(values, (8,))
    for row, (low, high) in zip(values, intervals, strict=True):
        error = row.std(ddof=1) / 400**0.5
        # 10,000 resamples place a percentile of 2.5 % within 0.05 standard errors.
        assert (low, high) == pytest.approx(
            (row.mean() - 1.96 * error, row.mean() + 1.96 * error), abs=0.1 * error
        )
    assert mean_intervals([[1.0]], (0,)) is None


def test_mean_intervals_cover_the_population_mean():
    generator = np.random.default_rng(2)
    trials, covered = 300, 0
    for trial in range(trials):
        solved = generator.beta(0.5, 0.5, size=60)
        values = generator.binomial(16, solved) / 16
        ((low, high),) = mean_intervals([values], (trial,), resamples=500)
        covered += low <= 0.5 <= high
    # 95 % +- 3 standard errors of 300 trials (1.26 % each), and 1 % that percentiles lack with 60.
    assert 0.95 - 0.048 <= covered / trials <= 0.95 + 0.038
