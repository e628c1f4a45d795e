"""NTHR's weights against all pairs of tokens, in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_families as tiny
import torch
from one_step import step_recipe, take_step, training_batch, weigh, weighting_of
from tiny_rollouts import rollouts
from torch import Tensor

from megatron_resrl.config.schema import Recipe
from megatron_resrl.policy.vocabulary import VocabularyShard
from megatron_resrl.rollout.worker import build_policy
from megatron_resrl.token_weighting.hidden_rewards import HiddenRewards
from megatron_resrl.token_weighting.nthr import NTHRWeighting
from megatron_resrl.token_weighting.whole_groups import SidesReport

BETA, ETA, TEMPERATURE = 0.7, 0.25, 0.8

Tokens = tuple[Tensor, Tensor]
"""[N, H] states and [N] targets of a response."""


def influence(
    first: list[Tokens], second: Tokens, matrix_VH: Tensor, kept: Tensor, temperature: float
) -> Tensor:
    """[N] of each second token the sum over the first of <delta, delta> <h, h>, pair by pair."""

    def errors(states: Tensor, targets: Tensor) -> Tensor:
        p = (states @ matrix_VH.T / temperature).softmax(-1)
        return (torch.nn.functional.one_hot(targets, len(matrix_VH)) - p)[:, kept]

    total = torch.zeros(len(second[1]), dtype=torch.float64)
    for states, targets in first:
        for state, delta in zip(states, errors(states, targets), strict=True):
            total += (errors(*second) @ delta) * (second[0] @ state)
    return total


def plain_weights(
    group: list[Tokens], correct: list[bool], matrix_VH: Tensor, temperature: float
) -> tuple[list[Tensor], float]:
    """Weights of a group's responses, and how close a token comes to the threshold."""
    kept = torch.cat([targets for _, targets in group]).unique()
    right = [each for each, its in zip(group, correct, strict=True) if its]
    means = []
    for own in right:
        others = [each for each in right if each is not own] or right
        means.append(float(influence(others, own, matrix_VH, kept, temperature).mean()))
    threshold, margin, weights = BETA * min(means), float("inf"), []
    for each, its in zip(group, correct, strict=True):
        found = torch.ones(len(each[1]))
        if not its:
            reward = influence(right, each, matrix_VH, kept, temperature)
            margin = min(margin, float((reward / threshold - 1).abs().min()))
            found[reward > threshold] = ETA
        weights.append(found)
    return weights, margin


def test_hidden_rewards_are_sums_over_all_pairs():
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(17, 6, generator=generator, dtype=torch.float64)
    first, second = (
        (
            torch.randn(count, 6, generator=generator, dtype=torch.float64),
            torch.randint(0, 13, (count,), generator=generator),
        )
        for count in (5, 8)
    )
    kept = torch.cat([first[1], second[1]]).unique()
    # Four rows are padding, which has no mass.
    shard = VocabularyShard(matrix, 13, TEMPERATURE, None)
    rewards = HiddenRewards(shard, kept)
    found = rewards.of_tokens(*second, rewards.gradient(*first))
    expected = influence([first], second, matrix[:13], kept, TEMPERATURE)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def recipe_of(model: Path) -> Recipe:
    recipe = step_recipe(model)
    options = {"beta": BETA, "eta": ETA}
    return replace(
        recipe,
        rollout=replace(recipe.rollout, temperature=TEMPERATURE),
        algorithm=replace(
            recipe.algorithm, name="grpo", weighting="nthr", weighting_options=options
        ),
    )


@pytest.mark.setting("algorithm.weighting", "algorithm.weighting_options")
@pytest.mark.parametrize("masked", [False, True])
def test_nthr_selects_the_tokens_of_the_formula(qwen3_on_one_rank: Path, masked: bool) -> None:
    """Micro-batches of three cut the groups of four. In one case two tokens of every five are an
    environment's, which have no part."""
    recipe = recipe_of(qwen3_on_one_rank)
    policy = build_policy(recipe)
    samples, positive = rollouts(masked=masked)
    batch = training_batch(samples, positive)
    found = weigh(policy, recipe, batch, weighting_of(policy, recipe)).weights
    model = tiny.read_model(qwen3_on_one_rank)
    matrix = model.get_output_embeddings().weight.detach().double()
    responses: list[Any] = []
    for row, sample in enumerate(samples):
        prompt, response = sample.prompt.token_ids, sample.response.token_ids
        with torch.no_grad():
            outputs = model(torch.tensor([prompt + response]), output_hidden_states=True)
        own = batch.loss_mask[row, : len(response)]
        states = outputs.hidden_states[-1][0, len(prompt) - 1 : -1].double()[own]
        responses.append((states, torch.tensor(response)[own]))
    selected = 0
    for group in range(4):
        rows = range(4 * group, 4 * group + 4)
        sides = [bool(positive[row]) for row in rows]
        expected = [torch.ones(len(responses[row][1])) for row in rows]
        if len(set(sides)) == 2:
            own = [responses[row] for row in rows]
            expected, margin = plain_weights(own, sides, matrix, TEMPERATURE)
            assert margin > 1e-4  # No token lies where the rounding of fp32 states decides.
        for place, row in enumerate(rows):
            assert found[row][batch.loss_mask[row]].tolist() == expected[place].tolist()
            assert (found[row][~batch.loss_mask[row]] == 1).all()
            selected += int((expected[place] == ETA).sum())
    assert 1 < selected < int(batch.loss_mask.sum()) / 2
    metrics = take_step(policy, recipe, samples).metrics
    assert metrics["update/applied"] == 1
    assert metrics["nthr/compared_fraction"] == 0.75
    assert ETA < metrics["nthr/mean_weight"] < 1
    assert metrics["resrl/negative_mass_share"] < 1


def test_nthr_summary_is_the_mean_over_compared_groups() -> None:
    weighting = NTHRWeighting(SimpleNamespace())
    reports = [SidesReport(1.0, 0.5), SidesReport(float("nan"), float("nan"))]
    assert weighting.summarise(reports, detailed=False) == {
        "nthr/compared_fraction": 0.5,
        "nthr/mean_weight": 0.5,
    }
    assert weighting.summarise([], detailed=False) == {}
