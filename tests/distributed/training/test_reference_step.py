"""`rl_step` takes the steps of an independent program, in every layout.

Tolerance: 1e-6 on every weight in fp32. Weights are up to 2, whose last bit is 2.4e-7; a step moves
them by up to 1e-2, and gradients that differ in their last bits move that by some 1e-7.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_families as tiny
import torch
from one_step import OF_THE_LAYOUT
from ranks import run_ranks
from reference_cases import (
    CASES,
    COMBINATIONS,
    LENGTHS,
    SHARED,
    THINK_MARKERS,
    plain_settings,
    rollouts,
)
from reference_step import Trained, train

TOLERANCE = 2e-6 if "TE_ON_CPU" in os.environ else 1e-6
"""Transformer Engine's layers round once more: they normalise and multiply in one module."""
SHOWN = 3e-5
"""What the settings of a case have to change at least."""
METRICS = (
    "loss",
    "grad_norm",
    "reward/mean",
    "resrl/negative_mass",
    "resrl/negative_mass_unweighted",
)
HARDEST = ("much at once", "much at once over two steps")
SINGLE_PASS_LAYOUTS = ("TP2+SP", "PP2", "DP2", "CP2", "CP2 packed", "TP2+SP packed")
SHARED_LAYOUTS = ("TP2+SP packed", "PP2", "CP2", "DP2")
SHARED_TOLERANCE = 2e-6
"""Of weights where responses share their prompt, whose gradients are summed in another order."""
RANKS = {
    1: [f"one={name}" for name in CASES],
    2: [
        *(f"{layout}={name}" for layout in ("TP2+SP", "PP2", "DP2", "CP2") for name in HARDEST),
        "TP2+SP packed=much at once",
        "TP2+SP=entropy bonus",
        "CP2=gspo",
        *(f"{layout}=KL in the loss, one pass" for layout in ("TP2+SP", "PP2", "CP2 packed")),
        *(f"{layout}=KL in the reward" for layout in ("PP2", "DP2", "CP2")),
        "CP2 packed=gmpo",
        "DP2=reinforce_pp",
        "PP2=a3po",
        "CP2=gmpo with ResRL's weights",
        "CP2 packed=llds",
        "CP2 packed=much at once over two steps",
        "PP2=much at once, tied matrices",
        "TP2+SP=much at once, Gemma 3",
        "EP2=much at once, experts",
        "EP2=one pass, experts",
        "DP2=one pass, grpo",
        "CP2 packed=one pass, token budget",
        "TP2+SP packed=token budget",
        *(
            f"{layout}={name}"
            for layout in SINGLE_PASS_LAYOUTS
            for name in ("one pass", "one pass after a scoring pass")
        ),
        *(f"{layout}=one pass{SHARED}" for layout in SINGLE_PASS_LAYOUTS),
        *(f"{layout}=much at once{SHARED}" for layout in SHARED_LAYOUTS),
        f"EP2=one pass, experts{SHARED}",
        f"CP2 packed=one pass, token budget{SHARED}",
        "CP2=one pass, small micro-batches",
        "DP2=one pass, small micro-batches",
    ],
}
"""Layouts and cases by number of ranks."""
CROSSED_LAYOUTS = {
    1: ("one", "one packed"),
    2: ("TP2+SP", "PP2", "CP2", "CP2 packed", "TP2+SP packed", "DP2"),
}
"""For combinations in turn; the last takes at least as many groups per update as replicas."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models by family."""
    folder = tmp_path_factory.mktemp("models")
    tiny.write_families(folder, {case.family for case in CASES.values()})
    return folder


@pytest.fixture(scope="module")
def product(folder: Path, request: pytest.FixtureRequest) -> Any:
    """By number of ranks and case, what the product made of it.

    All cases of the selected tests run together, because ranks take long to start.
    """
    parameters = [getattr(item, "callspec", None) for item in request.session.items]
    selected = {each.params.get("pair") for each in parameters if each}
    known: dict[tuple[int, str], Any] = {}

    def measure(ranks: int, *pairs: str) -> None:
        script = Path(__file__).with_name("ranks_reference_step.py")
        output = folder / f"{ranks} {len(known)}.pt"
        run_ranks(script, ranks, folder, output, *pairs)
        known.update({(ranks, pair): made for pair, made in torch.load(output).items()})

    def of(ranks: int, pair: str) -> Any:
        if (ranks, pair) not in known:
            # Layout by layout, as they are listed, because process groups take long.
            chosen = [each for each in RANKS[ranks] if each in selected or each == pair]
            measure(ranks, *(each for each in chosen if (ranks, each) not in known))
        return known[ranks, pair]

    return of


@pytest.fixture(scope="module")
def combined(folder: Path) -> Any:
    """By number of ranks, what the product made of all combinations."""

    @functools.cache
    def measure(ranks: int) -> dict[str, Any]:
        script = Path(__file__).with_name("ranks_reference_step.py")
        output = folder / f"combined {ranks}.pt"
        pairs = []
        for number, (name, case) in enumerate(COMBINATIONS.items()):
            layouts = CROSSED_LAYOUTS[ranks]
            if case.settings["algorithm.updates_per_step"] == len(LENGTHS):
                layouts = layouts[:-1]
            pairs.append(f"{layouts[number % len(layouts)]}={name}")
        # Layout by layout, because process groups take long.
        run_ranks(script, ranks, folder, output, *sorted(pairs), timeout=1200)
        return {pair.split("=", 1)[1]: made for pair, made in torch.load(output).items()}

    return measure


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    """What the reference makes of a case, or of what is left of it where its changes are
    ignored."""
    known: dict[str, Trained] = {}

    def of(name: str, *, ignoring: bool = False) -> Trained:
        case = (CASES | COMBINATIONS)[name]
        settings = case.ignored if ignoring else case.settings
        key = repr((case.family, case.masked, case.flat, sorted(settings.items())))
        if key not in known:
            made = plain_settings(settings, folder / case.family)
            steps = [rollouts(step, case) for step in range(1, made["steps"] + 1)]
            markers = THINK_MARKERS if made["resrl"]["mask_think"] else None
            known[key] = train(tiny.read_model(folder / case.family), steps, made, markers)
        return known[key]

    return of


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def _pairs() -> Iterator[Any]:
    """Layouts and cases; a case on one rank claims the settings that it shows."""
    for ranks, pairs in RANKS.items():
        for pair in pairs:
            case = CASES[pair.split("=", 1)[1]]
            shown = case.changes if ranks == 1 and case.shows else ()
            yield pytest.param(ranks, pair, marks=pytest.mark.setting(*shown))


@pytest.mark.parametrize(("ranks", "pair"), list(_pairs()))
def test_step_equals_the_reference_in_every_weight_and_number(product, reference, ranks, pair):
    tolerance = SHARED_TOLERANCE if pair.endswith(SHARED) else TOLERANCE
    compare(product(ranks, pair), reference(pair.split("=", 1)[1]), tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", COMBINATIONS)
def test_step_equals_the_reference_in_every_combination(combined, reference, ranks, name):
    compare(combined(ranks)[name], reference(name))


def compare(found: dict[str, Any], expected: Trained, tolerance: float = TOLERANCE) -> None:
    # No token lies where rounding decides whether it is clipped.
    assert expected.margin > 1e-5
    difference = largest_difference(found["weights"], expected.weights)
    assert difference <= tolerance, f"{difference:.1e}"
    assert len(found["metrics"]) == len(expected.metrics)
    for ours, theirs in zip(found["metrics"], expected.metrics, strict=True):
        for metric in METRICS:
            # fp32 sums in another order, one or two updates deep.
            assert ours[metric] == pytest.approx(theirs[metric], rel=1e-4, abs=1e-6), metric


@pytest.mark.parametrize("name", CASES)
def test_reference_cases_show_settings_that_are_ignored(reference, name):
    case = CASES[name]
    weights, ignored = (reference(name, ignoring=flag).weights for flag in (False, True))
    difference = largest_difference(weights, ignored)
    if case.shows:
        assert difference > SHOWN, f"{difference:.1e}"
    else:
        assert difference == 0


def _first_step(product: Any, ranks: int, pair: str) -> dict[str, float]:
    return product(ranks, pair)["metrics"][0]


@pytest.mark.parametrize(
    "arms",
    [
        (
            "positives by score, rewards of the other sign",
            "constant weights",
            "random weights",
        ),
        (
            "mean over tokens",
            "constant weights, mean over tokens",
            "random weights, mean over tokens",
        ),
    ],
)
def test_controls_have_the_negative_mass_of_the_method(product, arms):
    found = [_first_step(product, 1, f"one={arm}") for arm in arms]
    method = found[0]["resrl/negative_mass"]
    assert 0.3 < found[0]["resrl/negative_mass_share"] < 0.95
    for metrics in found:
        assert metrics["resrl/negative_mass"] == pytest.approx(method, rel=3e-6)  # fp32
        share = metrics["resrl/negative_mass"] / metrics["resrl/negative_mass_unweighted"]
        assert metrics["resrl/negative_mass_share"] == pytest.approx(share)


@pytest.mark.setting("algorithm.weighting")
def test_grpo_with_resrl_weights_is_resrl_bit_for_bit(product):
    composed, resrl = (
        product(1, f"one={name}") for name in ("grpo with ResRL's weights", "the defaults")
    )
    assert largest_difference(composed["weights"], resrl["weights"]) == 0
    assert composed["metrics"] == resrl["metrics"]


@pytest.mark.setting("resrl.window_tokens")
def test_window_tokens_that_are_few_hold_fewer_states(product):
    window = _first_step(product, 1, "one=small windows")
    default = _first_step(product, 1, "one=the defaults")
    assert window["resrl/peak_bytes"] < default["resrl/peak_bytes"]


@pytest.mark.setting("resrl.subspace_method")
def test_subspace_method_is_the_one_asked_for(product):
    assert _first_step(product, 1, "one=Gram matrices")["resrl/method_is_gram"] == 1
    assert _first_step(product, 1, "one=the defaults")["resrl/method_is_gram"] == 0


@pytest.mark.setting("algorithm.single_pass")
@pytest.mark.parametrize(
    ("ranks", "layout"), [(1, "one"), *((2, layout) for layout in SINGLE_PASS_LAYOUTS)]
)
def test_single_pass_gives_the_numbers_of_two_passes(product, ranks, layout):
    one = product(ranks, f"{layout}=one pass")
    two = product(ranks, f"{layout}=one pass after a scoring pass")
    assert largest_difference(one["weights"], two["weights"]) <= TOLERANCE
    for ours, theirs in zip(one["metrics"], two["metrics"], strict=True):
        assert ours.keys() == theirs.keys()
        assert (ours["step/passes"], theirs["step/passes"]) == (1.0, 2.0)
        for name in ours.keys() - {"step/passes", *OF_THE_LAYOUT}:
            # Micro-batches of other sizes: fp32 products and sums round differently.
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-6), name


@pytest.mark.setting("algorithm.shared_prompts")
@pytest.mark.parametrize(
    ("ranks", "layout", "case"),
    [
        *((1, "one", name.removesuffix(SHARED)) for name in CASES if name.endswith(SHARED)),
        *((2, layout, "one pass") for layout in SINGLE_PASS_LAYOUTS),
        *((2, layout, "much at once") for layout in SHARED_LAYOUTS),
        (2, "EP2", "one pass, experts"),
    ],
)
def test_shared_prompts_give_the_numbers_of_copies(product, ranks, layout, case):
    shared = product(ranks, f"{layout}={case}{SHARED}")
    copies = product(ranks, f"{layout}={case}")
    # Transformer Engine's layers share prompts in fp32 where sequences are packed anyway.
    shares = "TE_ON_CPU" not in os.environ or layout.endswith("packed")
    assert largest_difference(shared["weights"], copies["weights"]) <= SHARED_TOLERANCE
    for ours, theirs in zip(shared["metrics"], copies["metrics"], strict=True):
        assert ours.keys() == theirs.keys()
        assert (ours["step/shared_prompt_tokens"] > 0) == shares
        assert theirs["step/shared_prompt_tokens"] == 0
        for name in ours.keys() - set(OF_THE_LAYOUT):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-6), name


def test_single_pass_scores_too_large_groups_first(product):
    metrics = _first_step(product, 1, "one=one pass, small micro-batches")
    assert 1 < metrics["step/passes"] < 2
