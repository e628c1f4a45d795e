"""Rollouts, settings and layouts with which `rl_step` is held against `reference_step`."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tiny_families as tiny
import torch
from reference_advantages import Rollout

from megatron_resrl.config.schema import Recipe

LENGTHS = ((9, 14, 6, 11), (5, 8, 14, 7), (4, 6, 5, 12), (3, 7, 9, 6))
"""Response tokens of every sample, by group; 14 is the limit."""
SCORES = ((1, 0, 1, 0), (1, 1, 1, 0), (1, 0, -1, -1), (1, 0, 0, 0))
"""The third group holds a wrong answer that is better than the group's mean; the only right one of
the fourth is too short for a subspace."""
LIMIT = 14
THINK_MARKERS = (tiny.VOCABULARY - 2, tiny.VOCABULARY - 1)

BASE: dict[str, Any] = {
    "seed": 5,
    "steps": 1,
    "precision.params_dtype": "fp32",
    "parallel.timeout_minutes": 1.0,
    "optimizer.lr": 1e-2,
    "optimizer.lr_warmup_steps": 0,
    # Adam divides fp32 noise in tiny gradients by the root of their square; this bounds it.
    "optimizer.adam_eps": 1e-3,
    "optimizer.weight_decay": 0.0,
    "rollout.prompts_per_step": len(LENGTHS),
    "rollout.group_size": len(LENGTHS[0]),
    "rollout.max_response_length": LIMIT,
    "correction.warn_kl": None,
    "algorithm.micro_batch_size": 3,
    "algorithm.shared_prompts": "never",
    "resrl.rank": 6,
    "resrl.subspace_method": "rows",
}
TWO = {"algorithm.updates_per_step": 2}
LENGTH_SCALING = {
    "reward.length_scaling": True,
    "reward.length_full_until": 5,
    "reward.length_floor_at": 12,
    "reward.length_floor": 0.25,
}
DECAY = {
    "steps": 2,
    "optimizer.lr_warmup_steps": 1,
    "optimizer.lr_decay_style": "linear",
    "optimizer.min_lr": 1e-3,
}


@dataclass(frozen=True)
class Case:
    """Settings that must show: without `changes`, the reference itself comes out elsewhere."""

    changes: Mapping[str, Any]
    context: Mapping[str, Any] = field(default_factory=dict)
    """Other settings that make them matter."""
    masked: bool = False
    """Two tokens of every five are not the policy's, as in episodes of several turns."""
    flat: bool = False
    """In the second group all answers are wrong: with an update per group, one is left out."""
    family: str = "qwen3"
    shows: bool = True
    """False: the settings must change nothing, as those of the method of computation."""

    @property
    def settings(self) -> dict[str, Any]:
        """Of the recipe, by dotted name."""
        return BASE | dict(self.context) | dict(self.changes)

    @property
    def ignored(self) -> dict[str, Any]:
        """The settings of a program that does not see the changes."""
        return BASE | dict(self.context)


HARD = {
    "algorithm.aggregation": "token_mean",
    "algorithm.updates_per_step": 2,
    "algorithm.clip_low": 0.06,
    "algorithm.clip_high": 0.09,
    "algorithm.dual_clip": 1.15,
    "resrl.refresh": "minibatch",
    "resrl.positives": "advantage",
    "resrl.subspace_method": "gram",
    "resrl.layer": -3,
    "rollout.temperature": 0.7,
    "optimizer.lr": 3e-3,
    "correction.method": "token_tis",
    "correction.cap": 1.2,
    **LENGTH_SCALING,
}
"""Much at once."""
HARDER = {
    "algorithm.updates_per_step": 2,
    "algorithm.clip_low": 0.04,
    "resrl.refresh": "minibatch",
    "resrl.mask_think": True,
    "resrl.max_positive_tokens": 8,
    "rollout.temperature": 1.3,
    "optimizer.weight_decay": 0.1,
    "optimizer.clip_grad": 0.3,
    "correction.method": "icepop",
    "correction.band": (0.8, 1.25),
    "reward.overlong": "mask",
    **DECAY,
}
"""More of it, over two steps."""

ONE_PASS = {
    "algorithm.aggregation": "token_mean",
    "algorithm.options": {"entropy_coefficient": 0.1},
    "resrl.mask_think": True,
    "resrl.max_positive_tokens": 8,
    "rollout.temperature": 0.7,
    "correction.method": "token_tis",
    "correction.cap": 1.2,
    "reward.overlong": "mask",
    **DECAY,
}
"""Much of what one update can have."""

SHARED = ", shared prompts"
"""Behind the names of cases in which responses share their prompt."""

CASES: dict[str, Case] = {
    "the defaults": Case({"algorithm.name": "resrl"}, {"algorithm.name": "grpo"}),
    "positives by advantage": Case({"resrl.positives": "advantage"}, LENGTH_SCALING),
    "positives by score, rewards of the other sign": Case(LENGTH_SCALING),
    "mean over tokens": Case({"algorithm.aggregation": "token_mean"}),
    "mean over tokens, several updates": Case({"algorithm.aggregation": "token_mean"}, TWO),
    "Gram matrices": Case({"resrl.subspace_method": "gram"}, shows=False),
    "small windows": Case({"resrl.window_tokens": 10}, shows=False),
    "two updates": Case(TWO),
    "four updates": Case({"algorithm.updates_per_step": 4}, TWO),
    "refreshed weights": Case({"resrl.refresh": "minibatch"}, TWO),
    "refreshed weights, Gram matrices": Case(
        {"resrl.refresh": "minibatch"}, TWO | {"resrl.subspace_method": "gram"}
    ),
    "clip_low": Case({"algorithm.clip_low": 0.03}, TWO),
    "clip_high": Case({"algorithm.clip_high": 0.02}, TWO),
    "dual clip": Case({"algorithm.dual_clip": 1.1}, TWO),
    "temperature": Case({"rollout.temperature": 0.7}),
    "temperature, clipped": Case({"rollout.temperature": 0.7}, TWO | {"algorithm.clip_low": 0.03}),
    "masked over-long responses": Case({"reward.overlong": "mask"}),
    "punished over-long responses": Case(
        {
            "reward.overlong": "penalize",
            "reward.overlong_buffer": 8,
            "reward.overlong_penalty": 1.5,
        }
    ),
    "tokens of an environment": Case({"algorithm.name": "resrl"}, {"algorithm.name": "grpo"}, True),
    "truncated importance sampling": Case(
        {"correction.method": "token_tis", "correction.cap": 1.2}, TWO
    ),
    "its cap": Case({"correction.cap": 1.1}, {"correction.method": "token_tis"}),
    "of whole responses": Case(
        {"correction.method": "sequence_tis", "correction.cap": 1.5}, masked=True
    ),
    "icepop": Case({"correction.method": "icepop", "correction.band": (0.8, 1.3)}),
    "nsr": Case({"algorithm.name": "nsr"}),
    "w_reinforce": Case({"algorithm.name": "w_reinforce"}),
    "w_reinforce, its option": Case(
        {"algorithm.options": {"positive_weight": 0.6}}, {"algorithm.name": "w_reinforce"}
    ),
    "grpo without std": Case(
        {"algorithm.options": {"scale_by_std": False}}, {"algorithm.name": "grpo"}
    ),
    "grpo, eps": Case({"algorithm.options": {"eps": 0.5}}, {"algorithm.name": "grpo"}),
    "cispo": Case(
        {"algorithm.name": "cispo", "algorithm.options": {"clip_low": 0.03, "clip_high": 0.02}},
        TWO | {"algorithm.name": "grpo", "correction.method": "token_tis"},
    ),
    "gspo": Case(
        {"algorithm.name": "gspo", "algorithm.options": {"clip_low": 0.02, "clip_high": 0.01}},
        TWO | {"algorithm.name": "grpo"},
        masked=True,
    ),
    "llds": Case(
        {"algorithm.name": "llds", "algorithm.options": {"likelihood_coefficient": 2.0}},
        TWO | {"algorithm.name": "grpo", "algorithm.aggregation": "token_mean"},
        flat=True,
    ),
    "dr_grpo": Case(
        {"algorithm.name": "dr_grpo", "algorithm.aggregation": "constant_length"},
        {"algorithm.name": "grpo"},
    ),
    "rloo": Case({"algorithm.name": "rloo"}, {"algorithm.name": "grpo"}),
    "reinforce_pp": Case(
        {"algorithm.name": "reinforce_pp"},
        {"algorithm.name": "rloo", "reward.overlong": "mask"},
        masked=True,
    ),
    "reinforce_pp_baseline": Case(
        {"algorithm.name": "reinforce_pp_baseline"},
        LENGTH_SCALING | {"algorithm.name": "reinforce_pp"},
    ),
    "psr": Case({"algorithm.name": "psr"}, TWO | {"algorithm.name": "w_reinforce"}),
    "rft": Case(
        {"algorithm.name": "rft"},
        TWO | {"algorithm.name": "psr", "algorithm.aggregation": "token_mean"},
        flat=True,
    ),
    "gspo_token": Case(
        {
            "algorithm.name": "gspo_token",
            "algorithm.options": {"clip_low": 0.02, "clip_high": 0.01},
        },
        TWO | {"algorithm.name": "grpo"},
        masked=True,
    ),
    "gmpo": Case(
        {"algorithm.name": "gmpo", "algorithm.options": {"clip_low": 0.03, "clip_high": 0.02}},
        TWO | {"algorithm.name": "grpo"},
        masked=True,
    ),
    "sapo": Case(
        {
            "algorithm.name": "sapo",
            "algorithm.options": {"tau_positive": 2.0, "tau_negative": 5.0},
        },
        TWO | {"algorithm.name": "grpo"},
    ),
    "dppo": Case(
        {
            "algorithm.name": "dppo",
            "algorithm.options": {"clip_low": 1e-3, "clip_high": 2e-3},
        },
        TWO | {"algorithm.name": "grpo"},
    ),
    "dppo by KL": Case(
        {
            "algorithm.name": "dppo",
            "algorithm.options": {"divergence": "kl", "clip_low": 1e-6, "clip_high": 2e-6},
        },
        TWO | {"algorithm.name": "grpo"},
    ),
    "dppo, anchor of the engine": Case(
        {
            "algorithm.name": "dppo",
            "algorithm.options": {
                "anchor": "engine",
                "clip_low": 2e-3,
                "clip_high": 3e-3,
                "ratio_cap": 1.5,
            },
        },
        {"algorithm.name": "grpo"},
    ),
    "entropy bonus": Case({"algorithm.options": {"entropy_coefficient": 0.3}}, flat=True),
    "KL in the loss": Case(
        {"algorithm.kl_coefficient": 0.5}, TWO | {"algorithm.name": "grpo"}, flat=True
    ),
    **{
        f"KL in the loss, {estimator}": Case(
            {"algorithm.kl_estimator": estimator},
            TWO | {"algorithm.kl_coefficient": 0.5, "correction.method": "token_tis"},
            masked=True,
        )
        for estimator in ("k1", "k2")
    },
    "KL in the loss, one pass": Case(
        {"algorithm.kl_coefficient": 1.0},
        DECAY | {"algorithm.name": "grpo", "rollout.temperature": 0.7, "reward.overlong": "mask"},
        masked=True,
        flat=True,
    ),
    "KL in the reward": Case(
        {"algorithm.kl_in": "reward"},
        {"algorithm.kl_coefficient": 0.2, "algorithm.name": "rloo", "rollout.temperature": 0.7},
        masked=True,
        flat=True,
    ),
    "KL in the reward, k3": Case(
        {"algorithm.kl_estimator": "k3"},
        TWO | LENGTH_SCALING | {"algorithm.kl_coefficient": 0.2, "algorithm.kl_in": "reward"},
    ),
    "grpo with ResRL's weights": Case({"algorithm.weighting": "resrl"}, {"algorithm.name": "grpo"}),
    "resrl without weights": Case({"algorithm.weighting": "none"}, LENGTH_SCALING),
    "rloo with constant weights": Case(
        {"algorithm.weighting": "constant"},
        LENGTH_SCALING | {"algorithm.name": "rloo", "resrl.positives": "advantage"},
    ),
    "w_reinforce with ResRL's weights": Case(
        {"algorithm.weighting": "resrl"}, {"algorithm.name": "w_reinforce"}
    ),
    "nsr with ResRL's weights": Case({"algorithm.weighting": "resrl"}, {"algorithm.name": "nsr"}),
    "gspo_token with inverted weights": Case(
        {"algorithm.weighting": "inverted"},
        TWO
        | {
            "algorithm.name": "gspo_token",
            "algorithm.options": {"clip_low": 0.02, "clip_high": 0.01},
        },
        masked=True,
    ),
    "gmpo with ResRL's weights": Case(
        {"algorithm.weighting": "resrl"},
        TWO
        | {
            "algorithm.name": "gmpo",
            "algorithm.options": {"clip_low": 0.03, "clip_high": 0.02},
            "resrl.mask_think": True,
        },
    ),
    "negative filter": Case(
        {"algorithm.weighting": "negative_filter", "algorithm.weighting_options": {"keep": 0.3}},
        {"algorithm.name": "grpo"},
        masked=True,
    ),
    "a3po": Case(
        {
            "algorithm.weighting": "a3po",
            "algorithm.weighting_options": {"share": 0.3, "positive_scale": 2.0},
        },
        TWO | {"algorithm.name": "rloo"},
    ),
    "probability": Case(
        {"algorithm.weighting": "probability", "algorithm.weighting_options": {"alpha": 0.9}},
        {"algorithm.name": "resrl"},
    ),
    "lens": Case({"algorithm.name": "lens"}, {"algorithm.name": "grpo"}, masked=True, flat=True),
    "rank": Case({"resrl.rank": 3}),
    "sampled positives": Case({"resrl.max_positive_tokens": 8}),
    "quantiles": Case({"resrl.quantiles": (0.05, 0.6)}),
    "floor": Case({"resrl.floor": 0.4}),
    "positive_weight": Case({"resrl.positive_weight": 0.5}),
    "last layer": Case({"resrl.layer": -1}),
    "embeddings": Case({"resrl.layer": 0}),
    "third from the end": Case({"resrl.layer": -3}),
    "thoughts": Case({"resrl.mask_think": True}),
    "constant weights": Case({"resrl.weights": "constant"}, LENGTH_SCALING),
    "constant weights, mean over tokens": Case(
        {"resrl.weights": "constant"}, {"algorithm.aggregation": "token_mean"}
    ),
    "inverted weights": Case({"resrl.weights": "inverted"}),
    "random weights": Case({"resrl.weights": "random"}, LENGTH_SCALING),
    "random weights, mean over tokens": Case(
        {"resrl.weights": "random"}, {"algorithm.aggregation": "token_mean"}
    ),
    "random weights, Gram matrices": Case(
        {"resrl.weights": "random"}, {"resrl.subspace_method": "gram"}
    ),
    "clip_grad": Case({"optimizer.clip_grad": 0.05}),
    "no clipping of gradients": Case({"optimizer.clip_grad": 0.0}, {"optimizer.clip_grad": 0.05}),
    "weight decay": Case({"optimizer.weight_decay": 0.2}),
    "warm-up": Case({"optimizer.lr_warmup_steps": 3}, TWO),
    "warm-up and linear decay over two steps": Case(DECAY, {"steps": 2}),
    "an update left out": Case(DECAY, {"algorithm.updates_per_step": 4}, flat=True),
    "cosine": Case({"optimizer.lr_decay_style": "cosine"}, TWO | {"steps": 2}),
    "decay steps": Case({"optimizer.lr_decay_steps": 3}, DECAY | TWO),
    "moments": Case({"optimizer.adam_beta1": 0.5, "optimizer.adam_beta2": 0.7}, TWO),
    "Adam's epsilon": Case({"optimizer.adam_eps": 1e-2}),
    "packed": Case({"algorithm.sequence_packing": True}, shows=False),
    "micro-batches of all": Case({"algorithm.micro_batch_size": 16}, shows=False),
    "much at once": Case(HARD, masked=True),
    "much at once over two steps": Case(HARDER),
    "much at once, experts": Case(HARD, masked=True, family="qwen3_moe"),
    "much at once, tied matrices": Case(HARDER, family="llama_tied"),
    "much at once, Gemma 3": Case(HARD, masked=True, family="gemma3"),
    "one pass": Case(ONE_PASS, masked=True, flat=True),
    "one pass after a scoring pass": Case(
        ONE_PASS | {"algorithm.single_pass": "never"}, masked=True, flat=True
    ),
    "one pass, small micro-batches": Case(
        ONE_PASS | {"algorithm.micro_batch_size": 2}, masked=True, flat=True
    ),
    "one pass, token budget": Case(
        ONE_PASS | {"algorithm.micro_batch_size": 16, "algorithm.max_tokens_per_micro_batch": 60},
        masked=True,
        flat=True,
    ),
    "token budget": Case(
        {"algorithm.max_tokens_per_micro_batch": 60, "algorithm.micro_batch_size": 16},
        TWO,
        shows=False,
    ),
    "one pass, experts": Case(ONE_PASS, masked=True, flat=True, family="qwen3_moe"),
    "one pass, grpo": Case(
        {"algorithm.name": "grpo", "correction.method": "icepop", "correction.band": (0.8, 1.3)},
        masked=True,
        flat=True,
    ),
}
for _name in (
    *("one pass", "much at once", "one pass, experts", "one pass, grpo", "one pass, token budget"),
    "much at once, Gemma 3",
):
    _case = CASES[_name]
    CASES[_name + SHARED] = dataclasses.replace(
        _case, context={**_case.context, "algorithm.shared_prompts": "auto"}
    )
CROSSED: dict[str, tuple[Any, ...]] = {
    "resrl.positives": ("score", "advantage"),
    "algorithm.aggregation": ("sequence_mean", "token_mean"),
    "resrl.subspace_method": ("rows", "gram"),
    "algorithm.updates_per_step": (1, 2, 4),
    "resrl.refresh": ("rollout", "minibatch"),
    "resrl.weights": ("residual", "constant", "random"),
}
"""Settings of which every combination is run on request."""
COMBINATIONS = {
    " ".join(map(str, values)): Case(
        dict(zip(CROSSED, values, strict=True)),
        # Smaller steps, because the rounding of four of them adds up.
        {
            "optimizer.lr": 5e-3,
            "algorithm.clip_low": 0.05,
            "algorithm.dual_clip": 1.2,
            **LENGTH_SCALING,
        },
        masked=values[1] == "token_mean",
    )
    for values in itertools.product(*CROSSED.values())
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "one": {},
    "TP2+SP": {
        "parallel.tensor_model_parallel_size": 2,
        "parallel.sequence_parallel": True,
    },
    "PP2": {"parallel.pipeline_model_parallel_size": 2},
    "CP2": {"parallel.context_parallel_size": 2},
    "DP2": {},
    "EP2": {"parallel.expert_model_parallel_size": 2},
}
LAYOUTS["TP2+SP packed"] = LAYOUTS["TP2+SP"] | {"algorithm.sequence_packing": True}
LAYOUTS["one packed"] = {"algorithm.sequence_packing": True}
LAYOUTS["CP2 packed"] = LAYOUTS["CP2"] | {"algorithm.sequence_packing": True}


def recipe(settings: Mapping[str, Any], model: Path) -> Recipe:
    """A recipe of settings by dotted name."""
    made = dataclasses.replace(Recipe(), model=dataclasses.replace(Recipe().model, path=str(model)))
    for name, value in settings.items():
        section, _, key = name.rpartition(".")
        if section:
            value = dataclasses.replace(getattr(made, section), **{key: value})
        made = dataclasses.replace(made, **{section or key: value})
    return made


def plain_settings(settings: Mapping[str, Any], model: Path) -> dict[str, Any]:
    """The recipe of `settings` as nested dicts, for the reference.

    The settings are written in once more: where the schema ignored one, the reference must not.
    """
    made = dataclasses.asdict(recipe(settings, model))
    for name, value in settings.items():
        section, _, key = name.rpartition(".")
        (made[section] if section else made)[key] = value
    return made


def rollouts(step: int, case: Case) -> list[Rollout]:
    """Four groups of four for a step, from an engine that nearly agrees with a random model."""
    generator = torch.Generator().manual_seed(100 + step)

    def draw(count: int) -> list[int]:
        return torch.randint(0, tiny.VOCABULARY - 2, (count,), generator=generator).tolist()

    found = []
    for group, (lengths, scores) in enumerate(zip(LENGTHS, SCORES, strict=True)):
        prompt = tuple(draw(3 + 2 * group))
        if case.flat and group == 1:
            scores = (0, 0, 0, 0)
        for length, score in zip(lengths, scores, strict=True):
            tokens = draw(length)
            if length > 10:
                tokens[2], tokens[5] = THINK_MARKERS
            noise = 0.3 * torch.randn(length, generator=generator)
            found.append(
                Rollout(
                    group=group,
                    prompt=prompt,
                    response=tuple(tokens),
                    score=float(score),
                    cut_off=length == LIMIT,
                    drawn=tuple(
                        not case.masked or place % 5 not in (2, 3) for place in range(length)
                    ),
                    engine_log_probs=tuple((noise - math.log(tiny.VOCABULARY)).tolist()),
                )
            )
    return found
