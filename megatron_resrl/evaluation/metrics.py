"""Averages over samples, the unbiased pass@k and pass^k, votes, and how much responses differ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from megatron_resrl.evaluation.diversity import NGRAMS, distinct_answers, distinct_n
from megatron_resrl.evaluation.majority import consensus_at_k


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Estimates the probability that at least one of k samples is correct, without bias.

    1 - C(n - c, k) / C(n, k): the share of all k-subsets of the n samples that hold a correct
    one. Computed as a product of factors within [0, 1], which neither over- nor underflows.

    Args:
        num_samples: n.
        num_correct: c, of those n.
        k: From 1 to n.

    Raises:
        ValueError: A number is out of range.

    Source: Chen et al. 2021, arXiv 2107.03374, equation 1.
    """
    if not 0 <= num_correct <= num_samples:
        raise ValueError(f"{num_correct} of {num_samples} samples cannot be correct")
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} of {num_samples} samples: give a k from 1 to {num_samples}")
    all_wrong = 1.0
    for drawn in range(k):
        # The next sample is wrong too, given that those drawn before it were.
        all_wrong *= max(0, num_samples - num_correct - drawn) / (num_samples - drawn)
    return 1.0 - all_wrong


def pass_hat_k(num_samples: int, num_correct: int, k: int) -> float:
    """Estimates the probability that all of k samples are correct, without bias: pass^k.

    C(c, k) / C(n, k): the share of all k-subsets of the n samples that are all correct. That is
    one minus pass@k of the opposite verdicts.

    Args:
        num_samples: n.
        num_correct: c, of those n.
        k: From 1 to n.

    Raises:
        ValueError: A number is out of range.

    Source: Yao et al. 2024, tau-bench, arXiv 2406.12045, section 4.
    """
    return 1.0 - pass_at_k(num_samples, num_samples - num_correct, k)


def avg_at_k(scores: Sequence[Sequence[float]]) -> float:
    """The mean score over samples, then over prompts.

    Args:
        scores: [prompts][samples], at least one of each.

    Raises:
        ValueError: There is nothing to average.
    """
    if not scores or not all(scores):
        raise ValueError("avg@k needs at least one prompt, and at least one sample of each")
    return sum(sum(samples) / len(samples) for samples in scores) / len(scores)


def evaluation_metrics(
    scores_per_prompt: Sequence[Sequence[float]],
    ks: Iterable[int],
    answers: Sequence[Sequence[str]] | None = None,
    texts: Sequence[Sequence[str]] | None = None,
) -> dict[str, float]:
    """Reduces an evaluation: the means of `question_values` over prompts; arguments as there."""
    avg_at_k(scores_per_prompt)
    values = question_values(scores_per_prompt, ks, answers, texts)
    return {name: sum(several) / len(several) for name, several in values.items()}


def question_values(
    scores_per_prompt: Sequence[Sequence[float]],
    ks: Iterable[int],
    answers: Sequence[Sequence[str]] | None = None,
    texts: Sequence[Sequence[str]] | None = None,
) -> dict[str, list[float]]:
    """What an evaluation says of each question.

    Args:
        scores_per_prompt: [prompts][n samples]; above 0 is correct.
        ks: Each from 1 to n.
        answers: [prompts][n samples], see `answers.answer_reader`; None: there are none to count.
        texts: [prompts][n samples]; None: they are not compared.

    Returns:
        [prompts] of `avg@<n>`, the mean score, and of `pass@<k>` for every k. With several samples
        also of `pass^<k>` for every k above 1; of `cons@<k>` for those and n, and
        `distinct_answers`; and of `distinct-<n>`, see `diversity`.

    Raises:
        ValueError: Prompts differ in their number of samples, there is none, or a k is out of
            range.
    """
    sizes = sorted({len(samples) for samples in scores_per_prompt})
    if len(sizes) > 1:
        raise ValueError(f"all prompts need equally many samples, found {sizes}")
    (size,) = sizes or [0]
    ks = list(ks)
    verdicts = [[score > 0 for score in samples] for samples in scores_per_prompt]
    correct = list(map(sum, verdicts))
    values = {f"avg@{size}": [sum(samples) / size for samples in scores_per_prompt]}
    values |= {f"pass@{k}": [pass_at_k(size, count, k) for count in correct] for k in ks}
    if size == 1:
        return values
    several = [k for k in ks if k > 1]
    values |= {f"pass^{k}": [pass_hat_k(size, count, k) for count in correct] for k in several}
    if answers is not None:
        for k in sorted({*several, size}):
            pairs = zip(answers, verdicts, strict=True)
            values[f"cons@{k}"] = [consensus_at_k(*pair, k) for pair in pairs]
        values["distinct_answers"] = [float(distinct_answers(each)) for each in answers]
    if texts is not None:
        values |= {f"distinct-{n}": [distinct_n(each, n) for each in texts] for n in NGRAMS}
    return values
