"""THR's weights against sums over pairs of tokens, with the distributions of transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_families as tiny
import torch
from one_step import step_recipe, take_step, training_batch, weigh, weighting_of
from tiny_rollouts import rollouts

from megatron_resrl.rollout.worker import build_policy
from megatron_resrl.token_weighting.thr import THRWeighting
from megatron_resrl.token_weighting.whole_groups import SidesReport

P, THRESHOLD, TEMPERATURE = -0.3, 3.0, 0.8


def pairwise(
    states: list[np.ndarray], tokens: list[np.ndarray], weight: np.ndarray
) -> list[list[np.ndarray]]:
    """[number][i]: of each token of a response its part from response i, pair by pair of tokens."""
    columns = sorted({int(token) for each in tokens for token in each})
    errors = []
    for hidden, own in zip(states, tokens, strict=True):
        p = np.exp(hidden @ weight.T / TEMPERATURE)
        errors.append((np.eye(len(weight))[own] - p / p.sum(1, keepdims=True))[:, columns])
    return [
        [
            np.array(
                [
                    sum(
                        (errors[i][k] @ errors[j][t]) * (states[i][k] @ states[j][t])
                        for k in range(len(states[i]))
                    )
                    / len(states[i])
                    for t in range(len(states[j]))
                ]
            )
            for i in range(len(states))
        ]
        for j in range(len(states))
    ]


@pytest.mark.parametrize("masked", [False, True])
def test_thr_trains_a_step_with_its_weights(qwen3_on_one_rank: Path, masked: bool) -> None:
    """Micro-batches of three cut the groups of four. In one case two tokens of every five are an
    environment's."""
    options = {"p": P, "threshold": THRESHOLD}
    recipe = step_recipe(qwen3_on_one_rank)
    algorithm = replace(recipe.algorithm, name="grpo", weighting="thr", weighting_options=options)
    rollout = replace(recipe.rollout, temperature=TEMPERATURE)
    recipe = replace(recipe, algorithm=algorithm, rollout=rollout)
    policy = build_policy(recipe)
    samples, positive = rollouts(masked=masked)
    batch = training_batch(samples, positive)
    found = weigh(policy, recipe, batch, weighting_of(policy, recipe)).weights
    reference = tiny.read_model(qwen3_on_one_rank)
    output = reference.get_output_embeddings().weight.detach().double().numpy()
    states, tokens = [], []
    for row, sample in enumerate(samples):
        prompt, response = sample.prompt.token_ids, sample.response.token_ids
        with torch.no_grad():
            outputs = reference(torch.tensor([prompt + response]), output_hidden_states=True)
        own = batch.loss_mask[row, : len(response)]
        final = outputs.hidden_states[-1][0, len(prompt) - 1 : -1].double()
        states.append(final[own].numpy())
        tokens.append(torch.tensor(response)[own].numpy())
    kept = []
    for group in range(4):
        rows = range(4 * group, 4 * group + 4)
        correct = [row for row in rows if positive[row]]
        if len(correct) in (0, 4):
            assert (found[rows] == 1).all()
            continue
        places = [row - 4 * group for row in correct]
        parts = pairwise(*(each[rows.start : rows.stop] for each in (states, tokens)), output)
        signed = [
            sum(parts[place][i] for i in places) * (1 if place in places else -1)
            for place in range(4)
        ]
        # From the other correct responses; where there is none, from itself.
        means = [
            sum(parts[place][i] for i in places if i != place or len(places) == 1).mean()
            for place in places
        ]
        tau = THRESHOLD * min(means)
        for row, thr in zip(rows, signed, strict=True):
            # No token is so near to the threshold that fp32 states could decide.
            assert (np.abs(np.abs(thr) - tau) > 1e-4 * abs(tau)).all()
            expected = (np.abs(thr) > tau) * (1 + P * np.sign(thr))
            np.testing.assert_allclose(found[row][batch.loss_mask[row]], expected, rtol=1e-6)
            kept += list(expected)
    assert {0.0, 0.7, 1.3} == set(np.round(kept, 6))
    metrics = take_step(policy, recipe, samples).metrics
    assert metrics["update/applied"] == 1
    assert metrics["thr/compared_fraction"] == 0.75


def test_thr_summary_is_the_mean_weight_of_each_side() -> None:
    weighting = THRWeighting(SimpleNamespace())
    reports = [SidesReport(1.0, 0.5), SidesReport(float("nan"), float("nan"))]
    assert weighting.summarise(reports, detailed=False) == {
        "thr/compared_fraction": 0.5,
        "thr/mean_weight_correct": 1.0,
        "thr/mean_weight_incorrect": 0.5,
    }
    assert weighting.summarise([], detailed=False) == {}
