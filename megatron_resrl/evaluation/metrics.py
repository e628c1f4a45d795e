"""Averages over samples, and the unbiased pass@k."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


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
    scores_per_prompt: Sequence[Sequence[float]], ks: Iterable[int]
) -> dict[str, float]:
    """Reduces the scores of an evaluation.

    Args:
        scores_per_prompt: [prompts][n samples]; above 0 is correct.
        ks: Each from 1 to n.

    Returns:
        `avg@<n>`, the mean score, and `pass@<k>` for every k, the mean over prompts.

    Raises:
        ValueError: Prompts differ in their number of samples, there is none, or a k is out of
            range.
    """
    sizes = sorted({len(samples) for samples in scores_per_prompt})
    if len(sizes) > 1:
        raise ValueError(f"all prompts need equally many samples, found {sizes}")
    average = avg_at_k(scores_per_prompt)
    correct = [sum(score > 0 for score in samples) for samples in scores_per_prompt]
    metrics = {f"avg@{sizes[0]}": average}
    for k in ks:
        estimates = [pass_at_k(sizes[0], count, k) for count in correct]
        metrics[f"pass@{k}"] = sum(estimates) / len(estimates)
    return metrics
