"""Rewards, advantages and weights by probability of `reference_step`, from the papers' formulas.

One response at a time, in NumPy; nothing of the product is imported. Sources as there, and LENS,
2510.08696.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Settings = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Rollout:
    """A response with its verdict, before any shaping."""

    group: int
    prompt: tuple[int, ...]
    response: tuple[int, ...]
    score: float
    cut_off: bool
    """It ended at the length limit."""
    drawn: tuple[bool, ...]
    """Which of its tokens the policy drew."""
    engine_log_probs: tuple[float, ...]
    penalty: float = 0.0
    """What its reward loses by its distance from a reference."""

    @property
    def count(self) -> int:
        """Tokens that the policy drew."""
        return sum(self.drawn)


def shaped_reward(rollout: Rollout, settings: Settings) -> float:
    """Score, length factor of correct answers, then the soft overlong punishment."""
    reward, limit = settings["reward"], settings["rollout"]["max_response_length"]
    value = rollout.score
    if reward["length_scaling"] and value > 0:
        points = [reward["length_full_until"], reward["length_floor_at"]]
        value *= float(np.interp(rollout.count, points, [1.0, reward["length_floor"]]))
    if reward["overlong"] == "penalize":
        points = [limit - reward["overlong_buffer"], limit]
        value -= float(np.interp(len(rollout.response), points, [0.0, reward["overlong_penalty"]]))
    return value - rollout.penalty


def response_advantages(rollouts: Sequence[Rollout], settings: Settings) -> list[float]:
    """One per response, whatever is masked later."""
    name, options = settings["algorithm"]["name"], settings["algorithm"]["options"]
    if name in ("psr", "rft"):
        return [1.0 if rollout.score > 0 else 0.0 for rollout in rollouts]
    if name == "reinforce_pp":
        return [shaped_reward(rollout, settings) for rollout in rollouts]
    if name == "nsr":
        return [0.0 if rollout.score > 0 else -1.0 for rollout in rollouts]
    if name == "w_reinforce":
        reward = options.get("positive_weight", 0.1)
        return [reward if rollout.score > 0 else -1.0 for rollout in rollouts]
    advantages = []
    for rollout in rollouts:
        members = [r for r in rollouts if r.group == rollout.group]
        own = shaped_reward(rollout, settings)
        group = [shaped_reward(r, settings) for r in members]
        if name == "lens":
            own, *group = [lens_reward(r, members, settings) for r in (rollout, *members)]
            if not any(r.score > 0 for r in members):
                advantages.append(options.get("alpha", 0.25) * (own - float(np.mean(group))))
                continue
        if name == "rloo":
            advantages.append(own - (sum(group) - own) / (len(group) - 1))
            continue
        if name in ("dr_grpo", "reinforce_pp_baseline"):
            advantages.append(own - float(np.mean(group)))
            continue
        if max(group) == min(group):
            advantages.append(0.0)
            continue
        scale = np.std(group, ddof=1) + options.get("eps", 1e-6)
        scale = scale if options.get("scale_by_std", True) else 1.0
        advantages.append(float((own - np.mean(group)) / scale))
    return advantages


def lens_reward(rollout: Rollout, members: Sequence[Rollout], settings: Settings) -> float:
    """Shaped reward less p / (D - p) / G of incorrect responses, p their geometric mean."""
    reward = shaped_reward(rollout, settings)
    if rollout.score > 0:
        return reward

    def confidence(member: Rollout) -> float:
        return float(np.exp(np.mean(np.array(member.engine_log_probs)[list(member.drawn)])))

    difficulty = 2 * max(map(confidence, members))
    inverses = [1 / confidence(member) for member in members if member.score > 0]
    if inverses:
        difficulty = max(difficulty, 1 / (sum(inverses) / len(members)))
    p = confidence(rollout)
    return reward - p / (difficulty - p) / len(members)


def weights_by_probability(rollout: Rollout, positive: bool, algorithm: dict[str, Any]) -> list:
    """[response tokens] of the weightings that read the engine's log-probs."""
    options, log_probs = algorithm["weighting_options"], rollout.engine_log_probs
    if algorithm["weighting"] in ("auto", "none"):
        return [1.0] * len(log_probs)
    if algorithm["weighting"] == "probability":
        alpha = options.get("alpha", 0.2)
        return [alpha * np.exp(each) + 1 - alpha for each in log_probs]
    drawn = [t for t, own in enumerate(rollout.drawn) if own]
    unlikely = sorted(drawn, key=lambda t: log_probs[t])
    if algorithm["weighting"] == "negative_filter":
        kept = unlikely[: max(1, int(options.get("keep", 0.1) * len(drawn)))]
        return [float(positive or t in kept) for t in range(len(log_probs))]
    count = max(1, int(options.get("share", 0.2) * len(drawn)))
    chosen = unlikely[:count] if positive else unlikely[-count:]
    scale = options.get("positive_scale" if positive else "negative_scale", 5.0)
    return [scale if t in chosen else 1.0 for t in range(len(log_probs))]


def whitened(advantages: Sequence[float], counts: Sequence[int]) -> list[float]:
    """Over the tokens of all responses, one after the other."""
    tokens = np.repeat(advantages, counts)
    return [float((each - tokens.mean()) / tokens.std()) for each in advantages]
