"""Each rule tells a spike or a collapse from the usual spread."""

from __future__ import annotations

import json
import math
import random

import pytest

from megatron_resrl.config.schema_health import HealthConfig
from megatron_resrl.training.health import HealthHistory, deviations_above, score_limit, spread

SETTINGS = HealthConfig(window=20, collapse_steps=3)


def judged(
    values: dict[str, list[float]], settings: HealthConfig = SETTINGS
) -> list[tuple[int, str]]:
    """Step, from 0, and rule of each alarm of a run with these metrics."""
    history = HealthHistory()
    found = []
    for step in range(len(next(iter(values.values())))):
        metrics = {name: series[step] for name, series in values.items()}
        alarms, _ = history.judge(metrics, settings)
        found += [(step, alarm.rule) for alarm in alarms]
    return found


def noisy(steps: int, mean: float, deviation: float, seed: int = 0) -> list[float]:
    numbers = random.Random(seed)
    return [numbers.gauss(mean, deviation) for _ in range(steps)]


def test_spread_ignores_a_minority_of_outliers():
    assert spread([1.0, 2.0, 3.0, 1000.0, 2.0]) == (2.0, pytest.approx(1.4826))
    assert spread([5.0] * 9) == (5.0, pytest.approx(0.05))


def test_deviations_above_need_a_spread():
    assert deviations_above(3.0, [0.0, 0.0, 0.0]) is None
    assert deviations_above(2.0, [2.0, 2.0, 2.0]) == 0
    assert deviations_above(2.1, [2.0, 2.0, 2.0]) == pytest.approx(5.0)
    assert deviations_above(1.0, [2.0, 3.0, 4.0]) < 0


@pytest.mark.parametrize(
    ("metric", "rule"), [("loss", "loss_spike"), ("grad_norm", "grad_norm_spike")]
)
@pytest.mark.setting("health.loss_spike", "health.grad_norm_spike")
def test_spike_is_one_step_above_the_others(metric, rule):
    values = noisy(60, 2.0, 0.05)
    assert not judged({metric: values})
    values[40] = 3.0
    assert judged({metric: values}) == [(40, rule)]
    assert not judged(
        {metric: values}, HealthConfig(window=20, loss_spike="off", grad_norm_spike="off")
    )
    values[40] = 0.1  # Lower is no spike.
    assert not judged({metric: values})


@pytest.mark.setting("health.deviations", "health.window")
def test_spike_depends_on_deviations_and_window():
    values = [*noisy(60, 2.0, 0.05), 2.3]
    assert not judged({"loss": values})
    assert (60, "loss_spike") in judged({"loss": values}, HealthConfig(deviations=3.0))
    early = [2.0, 2.1, 2.0, 9.0]
    assert not judged({"loss": early})
    assert judged({"loss": early}, HealthConfig(window=6)) == [(3, "loss_spike")]


def test_spike_judges_no_missing_and_no_infinite_values():
    history = HealthHistory()
    for value in (2.0, 2.1) * 20:
        history.judge({"loss": value}, SETTINGS)
    before = history.saved()
    for metrics in ({}, {"loss": math.nan}, {"loss": math.inf}):
        assert history.judge(metrics, SETTINGS) == ([], {})
    assert history.saved() == before


def test_spike_is_silent_on_a_new_level_after_half_a_window():
    values = noisy(60, 2.0, 0.05) + noisy(60, 6.0, 0.05)
    alarms = [step for step, _ in judged({"loss": values})]
    assert alarms[0] == 60
    assert alarms[-1] < 60 + SETTINGS.window


@pytest.mark.setting("health.reward_collapse", "health.reward_share", "health.collapse_steps")
def test_reward_collapse_is_a_fall_that_lasts():
    score = "reward/score_mean"
    values = noisy(60, 0.6, 0.05)
    one = [*values, 0.0, *noisy(9, 0.6, 0.05)]
    assert not judged({score: one})
    # The median of the last three steps has fallen at the second of the low ones.
    fallen = [*values, *noisy(9, 0.1, 0.02)]
    assert judged({score: fallen})[0] == (61, "reward_collapse")
    assert not judged({score: fallen}, HealthConfig(window=20, reward_collapse="off"))
    assert judged({score: one}, HealthConfig(window=20, collapse_steps=1)) == [
        (60, "reward_collapse")
    ]
    half = [*values, *noisy(9, 0.25, 0.02)]
    assert judged({score: half})
    assert not judged({score: half}, HealthConfig(window=20, collapse_steps=3, reward_share=0.2))


def test_reward_collapse_needs_a_reward_and_more_than_noise():
    assert score_limit([0.0, 0.0, 0.0], 0.5) is None
    assert score_limit([-1.0, -2.0], 0.5) is None
    # Steps with 0 or 1 correct responses: half of the median lies within the spread.
    assert score_limit([0.0, 0.1, 0.0, 0.1, 0.05], 0.5) < 0
    assert score_limit([0.6, 0.61, 0.59], 0.5) == pytest.approx(0.3)


@pytest.mark.setting("health.entropy_collapse", "health.entropy_share")
def test_entropy_collapse_compares_with_the_first_steps():
    falling = [2.0 * 0.97**step for step in range(120)]
    first = 2.0 * 0.97**9.5
    steps = [step for step, _ in judged({"entropy": falling})]
    below = next(step for step, value in enumerate(falling) if value < 0.1 * first)
    assert steps[0] == below + 1  # The median of three values.
    assert not judged({"entropy": falling}, HealthConfig(window=20, entropy_collapse="off"))
    assert not judged({"entropy": falling}, HealthConfig(window=20, entropy_share=0.01))


def test_health_history_goes_on_from_json():
    values = {"loss": [*noisy(40, 2.0, 0.05), 9.0], "entropy": noisy(41, 1.0, 0.1)}
    whole, first = HealthHistory(), HealthHistory()
    for step in range(30):
        metrics = {name: series[step] for name, series in values.items()}
        whole.judge(metrics, SETTINGS)
        first.judge(metrics, SETTINGS)
    second = HealthHistory.of(json.loads(json.dumps(first.saved())))
    for step in range(30, 41):
        metrics = {name: series[step] for name, series in values.items()}
        alarms = second.judge(metrics, SETTINGS)
        assert alarms == whole.judge(metrics, SETTINGS)
    assert alarms[0][0].rule == "loss_spike"
    assert len(json.dumps(second.saved())) < 5000


def test_alarm_says_what_is_usual():
    history = HealthHistory()
    for value in (2.0,) * 20:
        history.judge({"loss": value}, SETTINGS)
    (alarm,), measured = history.judge({"loss": 3.0}, SETTINGS)
    assert str(alarm) == "loss is 3, above 2.2 (health.loss_spike; its median was 2)"
    assert measured == {"health/loss_deviations": pytest.approx(50.0)}
