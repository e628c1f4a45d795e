"""SHEAR's weights against exact transport, a plain Sinkhorn loop and the states of transformers."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_families as tiny
import torch
from one_step import step_recipe, take_step, training_batch, weigh, weighting_of
from tiny_rollouts import rollouts

from megatron_resrl.config.schema import Recipe
from megatron_resrl.errors import SettingError
from megatron_resrl.rollout.worker import build_policy
from megatron_resrl.token_weighting.options import ShearOptions
from megatron_resrl.token_weighting.registry import ChosenWeighting, require_weighting
from megatron_resrl.token_weighting.shear import ShearWeighting
from megatron_resrl.token_weighting.span_distances import (
    euclidean,
    nearest_opposing,
    sinkhorn_cost,
    span_starts,
    token_maxima,
)
from megatron_resrl.token_weighting.whole_groups import SidesReport

OPTIONS = {"span": 4, "stride": 3, "epsilon": 0.1, "iterations": 20}
SINKHORN = OPTIONS["epsilon"], OPTIONS["iterations"]


def clouds(*lengths: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in lengths]


def plain_sinkhorn(x: np.ndarray, y: np.ndarray, epsilon: float, iterations: int) -> float:
    """The textbook's scaling form, in float64."""
    cost = np.sqrt(((x[:, None] - y[None]) ** 2).sum(-1))
    kernel = np.exp(-cost / epsilon)
    a, b = np.full(len(x), 1 / len(x)), np.full(len(y), 1 / len(y))
    v = np.ones(len(y))
    for _ in range(iterations):
        u = 1 / (kernel @ (v * b))
        v = 1 / (kernel.T @ (u * a))
    return float(((u * a)[:, None] * kernel * (v * b)[None] * cost).sum())


def plain_weights(states: list[np.ndarray], correct: list[bool]) -> list[np.ndarray]:
    """A group's weights, span by span; all of its responses take part."""
    norm = np.concatenate([np.linalg.norm(x, axis=1) for x in states]).mean()

    def spans(x: np.ndarray) -> list[slice]:
        found = []
        for start in itertools.count(0, OPTIONS["stride"]):
            found.append(slice(start, start + OPTIONS["span"]))
            if start + OPTIONS["span"] >= len(x):
                return found

    weights = []
    for x, side in zip(states, correct, strict=True):
        own = np.zeros(len(x))
        for part in spans(x):
            near = min(
                # The first distribution is that of the correct response.
                plain_sinkhorn(*(pair if side else reversed(pair)), *SINKHORN)
                for y, its in zip(states, correct, strict=True)
                if its != side
                for other in spans(y)
                for pair in [(x[part] / norm, y[other] / norm)]
            )
            own[part] = np.maximum(own[part], near)
        weights.append(own)
    return weights


@pytest.mark.parametrize("epsilon", [0.3, 0.02])
def test_sinkhorn_cost_is_near_the_exact_transport(epsilon: float) -> None:
    """Between W_1 and W_1 + epsilon log n; W_1 of equal weights is the best assignment's."""
    points = 6
    x, y = clouds(points, points)
    cost = euclidean(x, y)
    exact = min(
        sum(float(cost[i, j]) for i, j in enumerate(order)) / points
        for order in itertools.permutations(range(points))
    )
    length = torch.tensor([points])
    found = sinkhorn_cost(cost[None], length, length, epsilon=epsilon, iterations=2000)
    # The last bits of fp32 sums over 36 numbers.
    assert -1e-5 <= float(found) - exact <= epsilon * np.log(points) + 1e-5
    if epsilon == 0.02:
        assert float(found) == pytest.approx(exact, abs=1e-3)


def test_sinkhorn_cost_equals_the_scaling_form_with_padding() -> None:
    x, y, z = (cloud.numpy() for cloud in clouds(5, 7, 3))
    cost = torch.full((2, 5, 7), 9.0)
    for number, pair in enumerate(((x, y), (z, x))):
        cost[number, : len(pair[0]), : len(pair[1])] = euclidean(*map(torch.tensor, pair))
    lengths = torch.tensor([5, 3]), torch.tensor([7, 5])
    found = sinkhorn_cost(cost, *lengths, epsilon=0.5, iterations=7)
    expected = [plain_sinkhorn(*pair, 0.5, 7) for pair in ((x, y), (z, x))]
    # fp32 against float64.
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_euclidean_of_equal_states_is_nearly_zero() -> None:
    [x] = clouds(5)
    assert float(euclidean(x, x).diagonal().max()) < 1e-7 * float(x.norm(dim=1).max())


@pytest.mark.parametrize(
    ("tokens", "starts"), [(0, []), (1, [0]), (100, [0]), (101, [0, 25]), (126, [0, 25, 50])]
)
def test_span_starts_end_with_the_first_that_reaches_the_end(tokens, starts) -> None:
    assert list(span_starts(tokens, 100, 25)) == starts


def test_nearest_opposing_is_the_least_over_shares() -> None:
    options = ShearOptions(**OPTIONS)
    sides = clouds(9, 4), clouds(5, 11, 2, seed=1)
    whole = nearest_opposing(*sides, options)
    shares = [nearest_opposing(*sides, options, slice(rank, None, 3)) for rank in range(3)]
    for side in (0, 1):
        for place, spans in enumerate(whole[side]):
            least = torch.stack([share[side][place] for share in shares]).amin(0)
            torch.testing.assert_close(least, spans, rtol=1e-6, atol=0)


def test_token_maxima_take_the_largest_covering_span() -> None:
    options = ShearOptions(span=4, stride=2)
    assert token_maxima(torch.tensor([3.0, 1.0, 2.0]), 7, options).tolist() == [3, 3, 3, 3, 2, 2, 2]


def recipe_of(model: Path) -> Recipe:
    recipe = step_recipe(model)
    algorithm = replace(recipe.algorithm, name="grpo", weighting="shear", weighting_options=OPTIONS)
    return replace(recipe, algorithm=algorithm)


@pytest.mark.setting("algorithm.weighting")
@pytest.mark.parametrize("masked", [False, True])
def test_shear_trains_a_step_with_weights_of_both_sides(
    qwen3_on_one_rank: Path, masked: bool
) -> None:
    """Micro-batches of three cut the groups of four. In one case two tokens of every five are an
    environment's, which are in no span."""
    recipe = recipe_of(qwen3_on_one_rank)
    policy = build_policy(recipe)
    samples, positive = rollouts(masked=masked)
    batch = training_batch(samples, positive)
    found = weigh(policy, recipe, batch, weighting_of(policy, recipe))
    reference = tiny.read_model(qwen3_on_one_rank)
    states = []
    for row, sample in enumerate(samples):
        prompt, response = sample.prompt.token_ids, sample.response.token_ids
        with torch.no_grad():
            outputs = reference(torch.tensor([prompt + response]), output_hidden_states=True)
        own = outputs.hidden_states[-1][0, len(prompt) - 1 : -1].double()
        states.append(own[batch.loss_mask[row, : len(response)]].numpy())
    for group in range(4):
        rows = range(4 * group, 4 * group + 4)
        sides = [bool(positive[row]) for row in rows]
        mixed = len(set(sides)) == 2
        expected = plain_weights([states[row] for row in rows], sides) if mixed else None
        for place, row in enumerate(rows):
            weights = found.weights[row][batch.loss_mask[row]]
            if expected is None:
                assert (weights == 1).all()
                continue
            # States of fp32, and a Sinkhorn loop in fp32.
            np.testing.assert_allclose(weights.numpy(), expected[place], rtol=2e-4)
            assert (found.weights[row][~batch.loss_mask[row]] == 1).all()
    metrics = take_step(policy, recipe, samples).metrics
    assert metrics["update/applied"] == 1
    assert metrics["shear/compared_fraction"] == 0.75
    # The loss has seen the weights, and no `resrl.positive_weight`.
    rewards = torch.tensor([s.reward for s in samples]).double().view(4, 4)
    centred = rewards - rewards.mean(1, keepdim=True)
    advantages = (centred / (rewards.std(1, keepdim=True) + 1e-6)).flatten()
    mean = (found.weights.double() * batch.loss_mask).sum(1) / batch.loss_mask.sum(1)
    mass = (mean * advantages.abs())[~positive].sum() / len(samples)
    assert metrics["resrl/negative_mass"] == pytest.approx(float(mass), rel=1e-5)


def test_shear_summary_is_the_mean_weight_of_each_side() -> None:
    weighting = ShearWeighting(SimpleNamespace(policy=None, options=ShearOptions()))
    reports = [SidesReport(1.0, 3.0), SidesReport(math.nan, math.nan), SidesReport(2.0, 5.0)]
    assert weighting.summarise(reports, detailed=False) == {
        "shear/compared_fraction": 2 / 3,
        "shear/mean_weight_correct": 1.5,
        "shear/mean_weight_incorrect": 4.0,
    }
    assert weighting.summarise(reports[1:2], detailed=False) == {"shear/compared_fraction": 0.0}


def test_shear_leaves_excluded_responses_out(qwen3_on_one_rank: Path) -> None:
    recipe = recipe_of(qwen3_on_one_rank)
    policy = build_policy(recipe, trainable=False)
    batch = training_batch(*rollouts())
    excluded = batch.excluded.clone()
    excluded[1] = True
    batch = replace(batch, excluded=excluded)
    rest = [row for row in range(len(batch)) if row != 1]
    whole, without = (
        weigh(policy, recipe, each, weighting_of(policy, recipe)).weights
        for each in (batch, batch.select(rest))
    )
    assert (whole[1] == 1).all()
    torch.testing.assert_close(whole[rest], without, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stride": 101}, "stride is 101; it must be at most span, 100"),
        ({"span": 2.5}, "span is not a whole number; use e.g. 100"),
        ({"epsilon": 0}, "epsilon is out of range; it must be above 0"),
    ],
)
def test_shear_options_that_cannot_be_used_are_refused(options, words) -> None:
    with pytest.raises(SettingError) as caught:
        require_weighting(ChosenWeighting("shear", "algorithm.weighting", options))
    assert words in str(caught.value)
