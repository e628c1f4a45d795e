"""Weightings behind the protocol: one of the user's trains a step, and names select them."""

from __future__ import annotations

import inspect
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_families as tiny
import torch
from adding_page import example_of_the_page
from one_step import step_recipe, take_step, training_batch, weigh, weighting_of
from tiny_rollouts import rollouts
from torch import Tensor

from megatron_resrl.config.schema import AlgorithmConfig, Recipe, ResrlConfig
from megatron_resrl.errors import SettingError
from megatron_resrl.rollout.worker import build_policy
from megatron_resrl.subspace.collectors import ROWS_PER_DIMENSION
from megatron_resrl.token_weighting import registry
from megatron_resrl.token_weighting.protocol import TokenWeights
from megatron_resrl.token_weighting.registry import ChosenWeighting
from megatron_resrl.token_weighting.tokenwise import TokenwiseWeighting


class FromNorm(TokenwiseWeighting):
    """All that a file of a new weighting needs: x / (1 + x) of the state's norm x."""

    def weights(self, hidden: Tensor) -> Tensor:
        norm = hidden.double().norm(dim=1)
        return norm / (1 + norm)


@pytest.fixture
def from_norm(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of `FromNorm`, registered by one line."""
    module = types.ModuleType("weighting_of_the_test")
    module.FromNorm = FromNorm
    monkeypatch.setitem(sys.modules, module.__name__, module)
    entry = registry.WeightingEntry(f"{module.__name__}:FromNorm")
    monkeypatch.setitem(registry.WEIGHTINGS, "norm", entry)
    return "norm"


def recipe_of(model: Path, weights: str) -> Recipe:
    return step_recipe(model, weights=weights)


def test_registered_weighting_trains_a_step_with_its_weights(
    qwen3_on_one_rank: Path, from_norm: str
) -> None:
    recipe = recipe_of(qwen3_on_one_rank, from_norm)
    policy = build_policy(recipe)
    samples, positive = rollouts()
    batch = training_batch(samples, positive)
    found = weigh(policy, recipe, batch, weighting_of(policy, recipe)).weights
    reference = tiny.read_model(qwen3_on_one_rank)
    for row, sample in enumerate(samples):
        prompt, response = sample.prompt.token_ids, sample.response.token_ids
        with torch.no_grad():
            outputs = reference(torch.tensor([prompt + response]), output_hidden_states=True)
        states = outputs.hidden_states[-2][0, len(prompt) - 1 : -1].double()
        norm = states.norm(dim=1)
        expected = torch.ones_like(norm) if positive[row] else norm / (1 + norm)
        torch.testing.assert_close(
            found[row, : len(response)].double(), expected, rtol=1e-5, atol=0
        )
    metrics = take_step(policy, recipe, samples).metrics
    # The loss has seen the weights: the mass of incorrect responses is that of these weights.
    advantages = _group_normalised(torch.tensor([s.reward for s in samples]).double())
    lengths = torch.tensor([len(s.response.token_ids) for s in samples])
    mean = (found.double() * batch.loss_mask).sum(1) / lengths
    mass = (mean * advantages.abs())[~positive].sum() / len(samples)
    assert metrics["resrl/negative_mass"] == pytest.approx(float(mass), rel=1e-5)
    assert metrics["update/applied"] == 1


def _group_normalised(rewards: Tensor) -> Tensor:
    groups = rewards.view(4, 4)
    return (
        (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-6)
    ).flatten()


@pytest.mark.setting("resrl.weights")
def test_inverted_weights_exchange_floor_and_one(qwen3_on_one_rank: Path) -> None:
    samples, positive = rollouts()
    batch = training_batch(samples, positive)
    policy = build_policy(recipe_of(qwen3_on_one_rank, "residual"), trainable=False)
    found = {
        name: weigh(policy, recipe, batch, weighting_of(policy, recipe))
        for name in ("residual", "inverted")
        for recipe in [recipe_of(qwen3_on_one_rank, name)]
    }
    plain, inverted = (found[name].weights for name in ("residual", "inverted"))
    weighted = [
        group for group, report in found["residual"].reports.items() if report.skipped is None
    ]
    assert weighted
    negative = batch.loss_mask & ~positive[:, None]
    negative &= torch.isin(batch.group_ids, torch.tensor(weighted))[:, None]
    torch.testing.assert_close(inverted[negative], 1.1 - plain[negative])
    assert float(inverted[negative].min()) == pytest.approx(0.1)
    assert torch.equal(inverted[~negative], plain[~negative])


def test_unknown_weighting_is_refused_with_the_nearest_name() -> None:
    words = r"algorithm\.weighting = 'reslr'.*did you mean 'resrl'"
    with pytest.raises(SettingError, match=words):
        registry.require_weighting(ChosenWeighting("reslr", "algorithm.weighting"))


@pytest.mark.parametrize(
    ("weighting", "weights", "weighted", "name", "setting"),
    [
        ("auto", "residual", True, "resrl", "resrl.weights"),
        ("auto", "random", True, "random", "resrl.weights"),
        ("auto", "random", False, "none", "algorithm.weighting"),
        ("constant", "residual", False, "constant", "algorithm.weighting"),
        ("none", "residual", True, "none", "algorithm.weighting"),
        ("mine.py:W", "residual", True, "mine.py:W", "algorithm.weighting"),
    ],
)
def test_chosen_weighting_is_the_algorithms_own_by_default(
    weighting: str, weights: str, weighted: bool, name: str, setting: str
) -> None:
    algorithm, resrl = AlgorithmConfig(weighting=weighting), ResrlConfig(weights=weights)
    chosen = registry.chosen_weighting(algorithm, resrl, weighted=weighted)
    assert (chosen.name, chosen.setting) == (name, setting)


def test_weightings_of_the_package_can_all_be_found() -> None:
    for name, entry in registry.WEIGHTINGS.items():
        chosen = ChosenWeighting(name, "algorithm.weighting")
        assert inspect.isclass(registry._find_class(chosen))
        # Some fields of a control are those of what it controls.
        if chosen.controlled is None:
            assert chosen.entry is entry
        else:
            assert chosen.entry.place == entry.place


def test_weighting_of_the_users_own_weighs_like_a_registered_one(
    qwen3_on_one_rank: Path, from_norm: str, tmp_path: Path
) -> None:
    file = tmp_path / "my_weightings.py"
    file.write_text(example_of_the_page("class FromNorm"))
    samples, positive = rollouts()
    batch = training_batch(samples, positive)
    policy = build_policy(recipe_of(qwen3_on_one_rank, from_norm), trainable=False)
    registered, own = (
        weigh(policy, recipe, batch, weighting_of(policy, recipe)).weights
        for recipe in (
            recipe_of(qwen3_on_one_rank, from_norm),
            recipe_of(qwen3_on_one_rank, f"{file}:FromNorm"),
        )
    )
    assert own.min() < 1
    torch.testing.assert_close(own, registered)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent.py:Mine", "there is no file"),
        ("mine.py:Yours", "its classes are Mine, Unfinished"),
        ("mine.py:Mine", "Mine does not define begin, summarise"),
        ("mine.py:Unfinished", "Unfinished does not define weights"),
        ("broken.py:Mine", "cannot be run (ZeroDivisionError: division by zero)"),
    ],
)
def test_require_weighting_names_what_is_none(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "mine.py").write_text(
        "from megatron_resrl import TokenwiseWeighting\n\n\n"
        "class Mine:\n    pass\n\n\n"
        "class Unfinished(TokenwiseWeighting):\n    pass\n"
    )
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(SettingError) as caught:
        registry.require_weighting(ChosenWeighting(str(tmp_path / name), "resrl.weights"))
    assert caught.value.setting == "resrl.weights"
    assert words in str(caught.value)


def test_token_weights_replaced_merges_a_later_pass() -> None:
    first = TokenWeights(torch.ones(3, 2), {0: "a", 1: "b"}, {"sent": 2.0}, {"peak": 5.0})
    later = TokenWeights(torch.zeros(1, 2), {1: "c"}, {"sent": 3.0}, {"peak": 4.0})
    merged = first.replaced([2], later)
    assert merged.weights.tolist() == [[1, 1], [1, 1], [0, 0]]
    assert merged.reports == {0: "a", 1: "c"}
    assert (merged.totals, merged.peaks) == ({"sent": 5.0}, {"peak": 5.0})
    assert first.weights.all()


def test_automatic_method_knows_the_longest_group(qwen3_on_one_rank: Path) -> None:
    """Gram matrices where the correct responses of a group can have too many tokens for rows."""
    policy = build_policy(recipe_of(qwen3_on_one_rank, "residual"))
    # 3 of 4 responses at most are correct where one is incorrect.
    most = ROWS_PER_DIMENSION * policy.config.hidden_size // 3
    methods = []
    for tokens in (most, most + 1):
        recipe = recipe_of(qwen3_on_one_rank, "residual")
        rollout = replace(recipe.rollout, group_size=4, max_response_length=tokens)
        methods.append(weighting_of(policy, replace(recipe, rollout=rollout)).method)
    assert methods == ["rows", "gram"]
