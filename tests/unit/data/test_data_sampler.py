"""The order of prompts, and resuming in the middle of it."""

from __future__ import annotations

import json
from collections import Counter
from itertools import chain
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_resrl.data.sampler import PromptSampler

sizes = st.integers(1, 12)
seeds = st.integers(0, 2**32)


def take(sampler: PromptSampler, batches: int) -> list[list[int]]:
    return [sampler.next_batch() for _ in range(batches)]


@given(sizes, sizes, seeds, st.booleans(), st.integers(1, 12))
def test_sampler_uses_every_prompt_once_per_epoch(
    num_prompts: int, batch_size: int, seed: int, shuffle: bool, batches: int
) -> None:
    sampler = PromptSampler(num_prompts, batch_size, seed, shuffle)
    taken = take(sampler, batches)
    assert {len(batch) for batch in taken} == {batch_size}
    stream = list(chain(*taken))
    for start in range(0, len(stream), num_prompts):
        epoch = stream[start : start + num_prompts]
        assert len(set(epoch)) == len(epoch)
        assert set(epoch) <= set(range(num_prompts))
    assert sampler.epoch == len(stream) // num_prompts


@given(sizes, sizes, seeds, st.booleans(), st.integers(0, 10))
def test_sampler_resumes_to_the_same_stream(
    num_prompts: int, batch_size: int, seed: int, shuffle: bool, before: int
) -> None:
    straight = PromptSampler(num_prompts, batch_size, seed, shuffle)
    take(straight, before)
    state = json.loads(json.dumps(straight.state_dict()))
    resumed = PromptSampler(num_prompts, batch_size, seed, shuffle)
    take(resumed, 3)  # what a sampler did before does not matter
    resumed.load_state_dict(state)
    assert resumed.epoch == straight.epoch
    assert take(resumed, 5) == take(straight, 5)


@given(sizes, sizes, sizes, seeds)
def test_sampler_stream_does_not_depend_on_the_batch_size(
    num_prompts: int, one: int, other: int, seed: int
) -> None:
    first = take(PromptSampler(num_prompts, one, seed), other)
    second = take(PromptSampler(num_prompts, other, seed), one)
    assert list(chain(*first)) == list(chain(*second))


def test_sampler_continues_with_another_batch_size() -> None:
    sampler, other = PromptSampler(10, 4, seed=1), PromptSampler(10, 2, seed=1)
    take(sampler, 1)
    other.load_state_dict(sampler.state_dict())
    assert list(chain(*take(other, 2))) == sampler.next_batch()


def test_sampler_orders_epochs_and_seeds_differently() -> None:
    sampler = PromptSampler(100, 100, seed=0)
    epochs = take(sampler, 3) + take(PromptSampler(100, 100, seed=1), 1)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert all(Counter(epoch) == Counter(range(100)) for epoch in epochs)


def test_sampler_without_shuffling_keeps_file_order() -> None:
    sampler = PromptSampler(5, 3, seed=0, shuffle=False)
    assert take(sampler, 4) == [[0, 1, 2], [3, 4, 0], [1, 2, 3], [4, 0, 1]]


def test_sampler_gives_plain_integers() -> None:
    assert all(type(index) is int for index in PromptSampler(5, 7, seed=0).next_batch())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ((6, 2, 0, True), "num_prompts = 5, this run 6"),
        ((5, 2, 1, True), "seed = 0, this run 1"),
        ((5, 2, 0, False), "shuffle = True, this run False"),
    ],
)
def test_sampler_refuses_the_state_of_another_run(settings: tuple[Any, ...], said: str) -> None:
    state = PromptSampler(5, 2, 0, True).state_dict()
    with pytest.raises(ValueError, match=f"the saved sampler has {said}: resume with the same"):
        PromptSampler(*settings).load_state_dict(state)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ((0, 2, 0), "num_prompts = 0: give at least 1"),
        ((5, 0, 0), "batch_size = 0: give at least 1"),
        ((5, 2, -1), "seed = -1: give at least 0"),
    ],
)
def test_sampler_names_settings_out_of_range(settings: tuple[int, int, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PromptSampler(*settings)


@given(sizes, st.lists(sizes, max_size=6), seeds)
def test_sampler_takes_further_prompts_from_the_same_stream(
    num_prompts: int, counts: list[int], seed: int
) -> None:
    mixed, plain = PromptSampler(num_prompts, 2, seed), PromptSampler(num_prompts, 1, seed)
    drawn = list(chain(*(mixed.draw(count) for count in counts)))
    assert drawn + mixed.next_batch() == plain.draw(sum(counts) + 2)
    assert mixed.state_dict() == plain.state_dict()


def test_sampler_counts_parts_of_epochs() -> None:
    sampler = PromptSampler(8, 4, seed=0)
    assert sampler.epochs == 0
    take(sampler, 3)
    assert (sampler.epochs, sampler.epoch) == (1.5, 1)
