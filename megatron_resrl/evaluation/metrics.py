"""avg@k and the unbiased pass@k."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Probability that at least one of k samples drawn without replacement is correct.

    1 - C(n - c, k) / C(n, k), as a product that does not overflow (Chen et al. 2021,
    arXiv 2107.03374).

    Raises:
        ValueError: k > n, or counts out of range.
    """
    if not 0 <= num_correct <= num_samples or not 1 <= k <= num_samples:
        raise ValueError(
            f"pass@{k} of {num_correct} correct among {num_samples} samples is not defined; "
            "k must lie between 1 and the number of samples"
        )
    wrong = num_samples - num_correct
    if wrong < k:
        return 1.0
    return 1.0 - prod(1.0 - k / i for i in range(wrong + 1, num_samples + 1))


def evaluation_metrics(
    scores: Sequence[Sequence[float]], pass_at: Sequence[int]
) -> dict[str, float]:
    """Averages over questions.

    Args:
        scores: For each question its samples' scores, equally many; above 0 is correct.
        pass_at: The k of pass@k.

    Returns:
        `avg@<n>`, the mean share of correct samples, and `pass@<k>`.

    Raises:
        ValueError: No questions, or unequal numbers of samples.
    """
    counts = {len(each) for each in scores}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(
            f"every question needs equally many samples, at least one; found {sorted(counts)}"
        )
    (samples,) = counts
    correct = [sum(score > 0 for score in each) for each in scores]
    metrics = {f"avg@{samples}": sum(correct) / (samples * len(correct))}
    for k in pass_at:
        metrics[f"pass@{k}"] = sum(pass_at_k(samples, c, k) for c in correct) / len(correct)
    return metrics
