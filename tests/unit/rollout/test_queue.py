"""The queue begins steps as far ahead as it may, and its state brings the same prompts back."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from megatron_resrl.config.schema import RolloutConfig
from megatron_resrl.data.prompts import Prompt, PromptRecord
from megatron_resrl.data.sampler import PromptSampler
from megatron_resrl.rollout.collect import Sample
from megatron_resrl.rollout.collector import Collected
from megatron_resrl.rollout.engine import Response
from megatron_resrl.rollout.queue import RolloutQueue, TooStale

PROMPTS = [
    Prompt(PromptRecord(index, [{"role": "user", "content": str(index)}], "", "", {}), (index,))
    for index in range(12)
]


@dataclass
class NotedCollector:
    """Answers each prompt once, with weights as old as the time at which it was asked."""

    trained: int = 0
    steps: list[tuple[int, int, list[int]]] = field(default_factory=list)

    def begin(self, step, prompts):
        asked = [prompt.token_ids[0] for prompt in prompts]
        self.steps.append((step, self.trained, asked))
        return prompts, self.trained

    def finish(self, collecting, draw):
        prompts, version = collecting
        response = Response((1,), (-1.0,), "stop", weight_versions=(version, self.trained))
        samples = [
            Sample(group, prompt, response, "", 0.0, 0.0, False)
            for group, prompt in enumerate(prompts)
        ]
        return Collected(samples, {"drawn": float(len(draw(1)))})


def queue(
    collector: NotedCollector, staleness: int, in_flight=(), sampler=None, **settings
) -> RolloutQueue:
    rollout = RolloutConfig(prompts_per_step=2, max_staleness=staleness, **settings)
    sampler = sampler or PromptSampler(len(PROMPTS), 2, seed=0, shuffle=False)
    return RolloutQueue(collector, PROMPTS, sampler, steps=4, rollout=rollout, in_flight=in_flight)


def test_queue_alternates_without_staleness():
    collector = NotedCollector()
    rollouts = queue(collector, 0)
    for step in range(1, 5):
        metrics = rollouts.next(step).metrics
        assert metrics["rollout/staleness_max"] == 0
        assert rollouts.in_flight() == []
        collector.trained = step
    assert [(step, version) for step, version, _ in collector.steps] == [
        (1, 0),
        (2, 1),
        (3, 2),
        (4, 3),
    ]


@pytest.mark.setting("rollout.max_staleness")
def test_queue_begins_steps_early_with_staleness():
    collector = NotedCollector()
    rollouts = queue(collector, 2)
    ages = []
    for step in range(1, 5):
        ages.append(rollouts.next(step).metrics["rollout/staleness_max"])
        collector.trained = step
    assert [(step, version) for step, version, _ in collector.steps] == [
        (1, 0),
        (2, 0),
        (3, 0),
        (4, 1),
    ]
    assert ages == [0, 1, 2, 2]


def test_queue_continues_with_the_prompts_in_flight():
    straight = NotedCollector()
    rollouts = queue(straight, 1)
    for step in range(1, 5):
        rollouts.next(step)
        straight.trained = step
    stopped = NotedCollector()
    sampler = PromptSampler(len(PROMPTS), 2, seed=0, shuffle=False)
    rollouts = queue(stopped, 1, sampler=sampler)
    for step in (1, 2):
        rollouts.next(step)
        stopped.trained = step
    continued = NotedCollector(trained=2)
    rollouts = queue(continued, 1, in_flight=rollouts.in_flight(), sampler=sampler)
    for step in (3, 4):
        rollouts.next(step)
        continued.trained = step
    asked = {step: prompts for step, _, prompts in straight.steps}
    assert [(step, prompts) for step, _, prompts in continued.steps] == [
        (3, asked[3]),
        (4, asked[4]),
    ]


def test_queue_refuses_older_weights_than_allowed():
    collector = NotedCollector()
    with pytest.raises(TooStale, match="step 4: a response began with weights 3 updates old"):
        queue(collector, 0).next(4)


def test_queue_takes_replayed_responses_of_any_age():
    metrics = queue(NotedCollector(), 0, replay="recorded").next(4).metrics
    assert metrics["rollout/staleness_max"] == 3
