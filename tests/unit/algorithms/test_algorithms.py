"""The algorithms and how they are looked up."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_resrl.algorithms import (
    Algorithm,
    algorithm_names,
    get_algorithm,
    group_normalised,
)
from megatron_resrl.config.schema import AlgorithmConfig, Recipe, ResrlConfig
from megatron_resrl.errors import SettingError
from megatron_resrl.training.algorithm import algorithm_of

REWARDS = torch.tensor([1.0, 0.7, 0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
SCORES = torch.tensor([1.0, 1.0, 0.0, -0.5, 1.0, 1.0], dtype=torch.float64)
GROUP = torch.tensor([3, 3, 3, 3, 8, 8])
EXACT = {"rtol": 0, "atol": 0}


def token_advantages(algorithm: Algorithm, weights: torch.Tensor) -> torch.Tensor:
    """One token per response of the batch above."""
    advantages = algorithm.sample_advantages(REWARDS, SCORES, GROUP)
    positive = algorithm.positive(SCORES, advantages)
    return algorithm.token_advantages(advantages, positive, weights)


def test_registry_names_are_the_algorithms_names() -> None:
    assert {"grpo", "resrl", "rloo", "dppo"} < set(algorithm_names())
    for name in algorithm_names():
        assert get_algorithm(name).name == name


def test_algorithms_but_resrl_weigh_no_tokens_by_themselves() -> None:
    assert [name for name in algorithm_names() if get_algorithm(name).weighted] == ["resrl"]


@pytest.mark.parametrize("name", algorithm_names())
def test_algorithms_are_frozen_and_give_float64_advantages(name) -> None:
    algorithm = get_algorithm(name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        algorithm.name = "other"  # type: ignore[misc]
    advantages = algorithm.sample_advantages(REWARDS.float(), SCORES.float(), GROUP)
    assert (advantages.dtype, advantages.shape) == (torch.float64, (6,))
    positive = algorithm.positive(SCORES, advantages)
    assert positive.tolist() == [True, True, False, False, True, True]


WEIGHED = [name for name in algorithm_names() if name not in ("resrl", "distillation")]
"""Of distillation the advantages are the tokens' own: `test_distillation.py`."""


@pytest.mark.parametrize("name", WEIGHED)
def test_algorithms_multiply_advantages_by_token_weights(name) -> None:
    algorithm = get_algorithm(name)
    weights = torch.tensor([1.0, 1.0, 0.25, 0.5, 2.0, 0.0])
    expected = weights * algorithm.sample_advantages(REWARDS, SCORES, GROUP)
    torch.testing.assert_close(token_advantages(algorithm, weights), expected, **EXACT)
    assert expected[:2].any() or expected[2:4].any()


def test_positive_weight_is_a_factor_on_positives() -> None:
    plain = token_advantages(get_algorithm("rloo"), torch.ones(6))
    halved = token_advantages(get_algorithm("rloo", positive_weight=0.5), torch.ones(6))
    torch.testing.assert_close(halved, plain * torch.tensor([0.5, 0.5, 1, 1, 0.5, 0.5]), **EXACT)


def test_grpo_normalises_shaped_rewards_in_their_groups() -> None:
    advantages = get_algorithm("grpo").sample_advantages(REWARDS, SCORES, GROUP)
    assert torch.equal(advantages, group_normalised(REWARDS, GROUP, eps=1e-6))
    assert advantages[4:].tolist() == [0, 0]


def test_grpo_without_scaling_is_the_centring_of_dr_grpo() -> None:
    algorithm = get_algorithm("grpo", scale_by_std=False)
    # mean of the first group: 0.425
    torch.testing.assert_close(
        algorithm.sample_advantages(REWARDS, SCORES, GROUP),
        torch.tensor([0.575, 0.275, -0.425, -0.425, 0, 0], dtype=torch.float64),
        rtol=1e-15,  # one rounding of the mean
        atol=0,
    )


def test_dr_grpo_is_grpo_without_scaling() -> None:
    ours = get_algorithm("dr_grpo").sample_advantages(REWARDS, SCORES, GROUP)
    grpo = get_algorithm("grpo", scale_by_std=False).sample_advantages(REWARDS, SCORES, GROUP)
    assert torch.equal(ours, grpo)


def test_rloo_is_the_reward_less_the_mean_of_the_others() -> None:
    alone = torch.tensor([3, 3, 3, 3, 8, 9])
    rewards = torch.tensor([1.0, 0.7, 0.0, 0.0, 1.0, 0.4], dtype=torch.float64)
    found = get_algorithm("rloo").sample_advantages(rewards, SCORES, alone)
    expected = [1 - 0.7 / 3, 0.7 - 1 / 3, -1.7 / 3, -1.7 / 3, 0.0, 0.0]
    assert found.tolist() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(
    ("name", "centred"),
    [
        ("reinforce_pp", [1.0, 0.7, 0.0, 0.0, 1.0, 1.0]),
        ("reinforce_pp_baseline", [0.575, 0.275, -0.425, -0.425, 0.0, 0.0]),
    ],
)
def test_reinforce_pp_whitens_over_the_tokens_of_the_step(name, centred) -> None:
    algorithm = get_algorithm(name)
    tokens = torch.tensor([3, 1, 4, 0, 2, 5])
    advantages = algorithm.sample_advantages(REWARDS, SCORES, GROUP)
    found = algorithm.relate_over_step(advantages, tokens)
    # OpenRLHF: one value per token, the mean and the population's variance of all of them.
    each = np.repeat(centred, tokens.numpy())
    expected = (np.array(centred) - each.mean()) / each.std()
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-12)


def test_reinforce_pp_of_equal_rewards_has_no_advantage() -> None:
    algorithm = get_algorithm("reinforce_pp")
    tokens = torch.tensor([3, 0, 7])
    rewards = torch.tensor([0.3, 0.9, 0.3], dtype=torch.float64)  # The second is left out.
    assert algorithm.relate_over_step(rewards, tokens).tolist() == [0, 0, 0]
    assert algorithm.relate_over_step(rewards, torch.zeros(3, dtype=torch.int64)).tolist() == [
        *(0, 0, 0)
    ]


def test_algorithms_relate_nothing_over_the_step_by_default() -> None:
    advantages = torch.tensor([0.5, -0.5], dtype=torch.float64)
    assert get_algorithm("grpo").relate_over_step(advantages, torch.tensor([1, 9])) is advantages


def test_lens_punishes_confident_mistakes_more() -> None:
    scores = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 0.0])
    group = torch.tensor([0, 0, 0, 0, 1, 1])
    p = torch.tensor([0.5, 0.4, 0.2, 0.1, 0.6, 0.3], dtype=torch.float64)
    lens = get_algorithm("lens", alpha=0.5)
    found = lens.calibrated_rewards(scores, scores, group, p.log())
    # D = max(4 / (1 / 0.5 + 1 / 0.1), 2 x 0.5) = 1 and 2 x 0.6.
    expected = [1, -0.4 / 0.6 / 4, -0.2 / 0.8 / 4, 1, -0.6 / 0.6 / 2, -0.3 / 0.9 / 2]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    # A group of 4 with one correct response that is likely: D = 4 x 0.9 by importance sampling.
    p = torch.tensor([0.9, 0.3, 0.3, 0.3], dtype=torch.float64)
    alone = (p > 0.5).double()
    by_sampling = lens.calibrated_rewards(alone, alone, group[:4], p.log())
    assert by_sampling.tolist() == pytest.approx([1, *3 * [-0.3 / (3.6 - 0.3) / 4]], rel=1e-12)
    advantages = lens.sample_advantages(found, scores, group)
    assert advantages[4:].tolist() == pytest.approx([-0.5 / 6, 0.5 / 6], rel=1e-12)
    assert torch.equal(advantages[:4], group_normalised(found[:4], group[:4]))


@pytest.mark.parametrize("name", ["psr", "rft"])
def test_psr_gives_one_to_correct_responses_only(name) -> None:
    advantages = get_algorithm(name).sample_advantages(REWARDS, SCORES, GROUP)
    assert advantages.tolist() == [1, 1, 0, 0, 1, 1]


def test_nsr_gives_minus_one_to_incorrect_responses_only() -> None:
    advantages = get_algorithm("nsr").sample_advantages(REWARDS, SCORES, GROUP)
    assert advantages.tolist() == [0, 0, -1, -1, 0, 0]


@pytest.mark.parametrize(("options", "gain"), [({}, 0.1), ({"positive_weight": 0.25}, 0.25)])
def test_w_reinforce_rewards_right_answers_by_lambda(options, gain) -> None:
    advantages = get_algorithm("w_reinforce", **options).sample_advantages(REWARDS, SCORES, GROUP)
    assert advantages.tolist() == [gain, gain, -1, -1, gain, gain]


def test_w_reinforce_with_lambda_zero_is_nsr() -> None:
    algorithms = get_algorithm("w_reinforce", positive_weight=0), get_algorithm("nsr")
    first, second = (each.sample_advantages(REWARDS, SCORES, GROUP) for each in algorithms)
    assert torch.equal(first, second)


def test_resrl_scales_positives_and_weights_negatives() -> None:
    weights = torch.tensor([1.0, 1.0, 0.1, 1.0, 1.0, 1.0])
    grpo = get_algorithm("grpo").sample_advantages(REWARDS, SCORES, GROUP)
    factors = torch.tensor([0.1, 0.1, 0.1, 1.0, 0.1, 0.1], dtype=torch.float64)
    factors[2] = weights[2].double()
    torch.testing.assert_close(
        token_advantages(get_algorithm("resrl"), weights), grpo * factors, **EXACT
    )


def test_resrl_with_weight_one_punishes_like_grpo() -> None:
    ours = token_advantages(get_algorithm("resrl"), torch.ones(6))
    grpo = get_algorithm("grpo").sample_advantages(REWARDS, SCORES, GROUP)
    assert torch.equal(ours[2:4], grpo[2:4])
    assert (ours[2:4] < 0).all()


def test_resrl_with_both_factors_one_is_grpo() -> None:
    ours = token_advantages(get_algorithm("resrl", positive_weight=1.0), torch.ones(6))
    assert torch.equal(ours, get_algorithm("grpo").sample_advantages(REWARDS, SCORES, GROUP))


def test_resrl_positives_differ_for_correct_below_the_mean() -> None:
    # Length scaling pushed the second right answer below the mean of 0.925.
    rewards = torch.tensor([1.0, 0.7, 1.0, 1.0])
    scores, group = torch.ones(4), torch.zeros(4, dtype=torch.int64)
    by_score, by_advantage = (
        get_algorithm("resrl", positives=how) for how in ("score", "advantage")
    )
    advantages = by_score.sample_advantages(rewards, scores, group)
    assert advantages[1] < 0
    assert by_score.positive(scores, advantages).tolist() == [True] * 4
    assert by_advantage.positive(scores, advantages).tolist() == [True, False, True, True]


def test_resrl_works_on_flat_tokens_and_keeps_their_precision() -> None:
    algorithm = get_algorithm("resrl")
    advantages = torch.tensor([1.0, 1.0, -2.0, -2.0, -2.0])
    positive = torch.tensor([True, True, False, False, False])
    weights = torch.tensor([1.0, 1.0, 0.1, 0.55, 1.0], dtype=torch.float64)
    result = algorithm.token_advantages(advantages, positive, weights)
    assert result.dtype == torch.float32
    expected = torch.tensor([0.1, 0.1, -0.2, -1.1, -2.0])
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=0)  # fp32
    empty = torch.zeros(0)
    assert algorithm.token_advantages(empty, empty.bool(), empty).shape == (0,)


def test_resrl_refuses_tokens_that_do_not_match() -> None:
    with pytest.raises(ValueError, match=r"advantages \[3\].*positive \[3\].*token_weights \[2\]"):
        get_algorithm("resrl").token_advantages(
            torch.ones(3), torch.ones(3, dtype=torch.bool), torch.ones(2)
        )


@pytest.mark.parametrize("name", algorithm_names())
def test_algorithms_refuse_scores_that_are_not_numbers(name) -> None:
    with pytest.raises(ValueError, match=r"scores\[1\] is nan"):
        get_algorithm(name).positive(torch.tensor([1.0, float("nan")]), torch.zeros(2))


def test_get_algorithm_answers_an_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"'resrll'.*did you mean 'resrl'.*grpo, nsr, w_reinforce"):
        get_algorithm("resrll")
    with pytest.raises(
        ValueError,
        match=r"'zzz': there is no such algorithm; give grpo, nsr, w_reinforce",
    ):
        get_algorithm("zzz")


def test_algorithm_of_takes_settings_of_the_resrl_section() -> None:
    section = ResrlConfig(positive_weight=0.3, positives="advantage")
    options = AlgorithmConfig(options={"eps": 1e-4})
    algorithm = algorithm_of(Recipe(algorithm=options, resrl=section))
    assert algorithm == get_algorithm("resrl", positive_weight=0.3, positives="advantage", eps=1e-4)
    twice = AlgorithmConfig(options={"positive_weight": 0.2})
    with pytest.raises(ValueError, match=r"'positive_weight'; set resrl\.positive_weight instead"):
        algorithm_of(Recipe(algorithm=twice))
    grpo = algorithm_of(Recipe(algorithm=AlgorithmConfig(name="grpo"), resrl=section))
    assert grpo == get_algorithm("grpo")


def test_algorithm_of_composes_any_algorithm_with_resrl_weights() -> None:
    section = ResrlConfig(positive_weight=0.3, positives="advantage")

    def made(name: str, weighting: str, **options: object) -> Algorithm:
        algorithm = AlgorithmConfig(name=name, weighting=weighting, options=options)
        return algorithm_of(Recipe(algorithm=algorithm, resrl=section))

    gspo = made("gspo", "resrl")
    assert gspo == get_algorithm("gspo", positive_weight=0.3, positives="advantage")
    assert made("gspo", "constant") == gspo
    assert made("gspo", "none") == get_algorithm("gspo")
    assert made("gspo", "none", positive_weight=0.5) == get_algorithm("gspo", positive_weight=0.5)
    with pytest.raises(ValueError, match=r"'positive_weight'; set resrl\.positive_weight instead"):
        made("gspo", "resrl", positive_weight=0.5)
    # Its own lambda is not multiplied by another factor.
    lambdas = made("w_reinforce", "resrl", positive_weight=0.2)
    assert lambdas == get_algorithm("w_reinforce", positive_weight=0.2, positives="advantage")
    assert token_advantages(lambdas, torch.ones(6)).max() == 0.2


def test_get_algorithm_answers_an_unknown_option() -> None:
    pattern = (
        r"'positive_wieght'.*did you mean 'positive_weight'.*"
        r"grpo takes: entropy_coefficient, positive_weight, positives, eps, scale_by_std$"
    )
    with pytest.raises(ValueError, match=pattern):
        get_algorithm("grpo", positive_wieght=0.2)
    pattern = r"'positive_wieght'.*did you mean 'resrl\.positive_weight'.*resrl takes: entropy_"
    with pytest.raises(ValueError, match=pattern):
        get_algorithm("resrl", positive_wieght=0.2)
    with pytest.raises(ValueError, match=r"'kll', did you mean 'algorithm\.kl_coefficient'\?"):
        get_algorithm("grpo", kll=0.2)
    with pytest.raises(ValueError, match=r"'name'.*nsr takes: .*entropy_coefficient"):
        get_algorithm("nsr", **{"name": "grpo"})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("grpo", {"eps": -1.0}, r"eps = -1.0: .*at least 0"),
        ("grpo", {"eps": "1e-6"}, r"eps = '1e-6': not a number"),
        ("grpo", {"scale_by_std": 1}, r"scale_by_std = 1: .*true or false"),
        ("w_reinforce", {"positive_weight": float("nan")}, r"positive_weight = nan"),
        ("resrl", {"positive_weight": True}, r"positive_weight = True: not a number"),
        ("resrl", {"positives": "reward"}, r"positives = 'reward': .*score, advantage"),
        ("nsr", {"entropy_coefficient": -0.1}, r"entropy_coefficient = -0.1: .*at least 0"),
        ("gspo", {"clip_low": 1.0}, r"clip_low = 1.0: .*above 0 and below 1"),
        ("cispo", {"clip_low": 1.1}, r"clip_low = 1.1: .*above 0 and at most 1"),
        ("gspo", {"clip_high": 0.0}, r"clip_high = 0.0: .*above 0"),
        ("reinforce_pp", {"min_variance": 0}, r"min_variance = 0: .*above 0"),
        ("gmpo", {"clip_low": 0}, r"clip_low = 0: .*above 0"),
        ("sapo", {"tau_negative": -1.0}, r"tau_negative = -1.0: .*above 0"),
        ("lens", {"alpha": -1}, r"alpha = -1: .*at least 0"),
        ("dppo", {"divergence": "js"}, r"divergence = 'js': .*tv, kl"),
        ("dppo", {"anchor": "old"}, r"anchor = 'old': .*trainer, engine"),
        ("dppo", {"ratio_cap": 1.0}, r"ratio_cap = 1.0: .*above 1"),
        ("dppo", {"clip_high": 0.0}, r"clip_high = 0.0: .*above 0"),
        ("llds", {"likelihood_coefficient": -1}, r"likelihood_coefficient = -1"),
        ("llds", {"likelihood_tolerance": None}, r"likelihood_tolerance = None: not a number"),
    ],
)
def test_get_algorithm_names_options_out_of_range(name, options, message) -> None:
    with pytest.raises(ValueError, match=rf"algorithm\.options\.{message}"):
        get_algorithm(name, **options)


RLOO = """
from dataclasses import dataclass
from typing import ClassVar

import torch
from megatron_resrl.algorithms import Algorithm


@dataclass(frozen=True)
class RLOO(Algorithm):
    name: ClassVar[str] = "rloo"
    scale: float = 1.0

    def sample_advantages(self, rewards, scores, group):
        same = (group[:, None] == group[None, :]).double()
        others = same.sum(1) - 1
        return self.scale * (rewards.double() - (same @ rewards.double() - rewards) / others)


@dataclass(frozen=True)
class Unfinished(Algorithm):
    name: ClassVar[str] = "unfinished"


def not_a_class():
    pass
"""


def test_get_algorithm_finds_a_class_by_file_and_name(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(RLOO)
    algorithm = get_algorithm(f"{file}:RLOO", scale=2.0)
    advantages = algorithm.sample_advantages(REWARDS, SCORES, GROUP)
    # Each reward less the mean of the others of its group, by hand.
    expected = [1 - 0.7 / 3, 0.7 - 1 / 3, -1.7 / 3, -1.7 / 3, 0.0, 0.0]
    torch.testing.assert_close(advantages, 2 * torch.tensor(expected, dtype=torch.float64))
    assert algorithm_of(Recipe(algorithm=AlgorithmConfig(name=f"{file}:RLOO"))).scale == 1.0
    with pytest.raises(ValueError, match=r"algorithm\.options has 'lambda'.*takes: .*scale"):
        get_algorithm(f"{file}:RLOO", **{"lambda": 1})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent.py:RLOO", "there is no file"),
        ("mine.py:RLO", "its algorithms are"),
        ("mine.py:not_a_class", "has no algorithm 'not_a_class'"),
        ("mine.py:Unfinished", "Unfinished does not define sample_advantages"),
        ("broken.py:RLOO", "cannot be run (ZeroDivisionError: division by zero)"),
    ],
)
def test_get_algorithm_names_what_is_no_algorithm(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "mine.py").write_text(RLOO)
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(SettingError) as caught:
        get_algorithm(str(tmp_path / name))
    assert caught.value.setting == "algorithm.name"
    assert words in str(caught.value)
