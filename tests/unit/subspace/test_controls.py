"""Controls punish wrong answers as much as the method does, in the loss of any recipe."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_resrl.subspace import token_weights_with_reports
from megatron_resrl.subspace.controls import constant_weights, random_weights

CONTROLS = ("constant", "random")


def control(
    name: str, weights: torch.Tensor, share: torch.Tensor, floor: float = 0.1, key: int = 7
) -> torch.Tensor:
    """[W] of one group."""
    if name == "constant":
        return constant_weights(weights[None], share[None])[0]
    count = torch.tensor([len(weights)])
    return random_weights(weights[None], share[None], count, floor, [key])[0]


@pytest.mark.parametrize("name", CONTROLS)
def test_constant_weights_count_responses_as_the_loss_does(name):
    lengths = torch.tensor([10, 200])
    weights = torch.cat((torch.ones(10), torch.linspace(0.1, 0.774, 200))).double()
    share = (1 / lengths.double() / 2).repeat_interleave(lengths)  # the mean over responses
    assert float((share * weights).sum()) == pytest.approx(0.7185, abs=1e-6)
    assert float(weights.mean()) == pytest.approx(0.4638, abs=1e-4)  # over tokens: another number
    found = control(name, weights, share)
    assert float((share * found).sum()) == pytest.approx(0.7185, abs=1e-6)


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    floor=st.floats(0, 1),
    seed=st.integers(0, 10_000),
    ends=st.booleans(),
)
def test_controls_keep_the_negative_mass_and_range(lengths, floor, seed, ends):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(sum(lengths), generator=generator, dtype=torch.float64)
    drawn = drawn.round() if ends else drawn  # all weights at the floor or 1
    weights = floor + (1 - floor) * drawn
    advantages = torch.rand(len(lengths), generator=generator, dtype=torch.float64)
    advantages[0] = 1.0  # the others may be 0: such a response is not in the loss
    advantages[1:] *= torch.rand(len(lengths) - 1, generator=generator) < 0.8
    tokens = torch.tensor(lengths)
    share = (advantages / tokens).repeat_interleave(tokens)
    wanted = float((share * weights).sum())
    for name in CONTROLS:
        found = control(name, weights, share, floor, key=seed)
        assert float((share * found).sum()) == pytest.approx(wanted, rel=1e-12)
        # Rounding of the last step may touch the ends.
        assert float(found.min()) >= floor - 1e-12
        assert float(found.max()) <= 1 + 1e-12


def test_random_weights_say_nothing_of_their_token():
    weights = torch.cat((torch.full((100,), 0.1), torch.ones(100))).double()
    share = torch.ones(200, dtype=torch.float64)
    found = torch.stack([control("random", weights, share, key=key) for key in range(400)])
    means = found.mean(0)
    # 0.55, of 400 draws with a deviation of 0.45.
    assert float((means - 0.55).abs().max()) < 0.45 / 20 * 5
    assert len(found.unique(dim=0)) == 400
    # Of tokens that count alike, they are the same weights in another order.
    torch.testing.assert_close(found.sort(1).values, weights.sort().values.expand_as(found))


def test_random_weights_are_distributed_as_the_loss_sees_them():
    lengths = torch.tensor([20, 200])
    weights = torch.cat((torch.ones(20), torch.full((200,), 0.1))).double()
    share = (1 / lengths.double()).repeat_interleave(lengths)
    found = torch.stack([control("random", weights, share, key=key) for key in range(200)])
    # Half of the mass lies on tokens of weight 1: half of the tokens get about that.
    assert float((found > 0.55).double().mean()) == pytest.approx(0.5, abs=0.02)


def test_random_weights_are_the_same_beside_a_longer_group():
    weights = torch.rand(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    share = torch.ones(2, 9, dtype=torch.float64)
    share[0, 5:] = 0  # padding
    both = random_weights(weights, share, torch.tensor([5, 9]), 0.0, [3, 4])
    alone = random_weights(weights[:1, :5], share[:1, :5], torch.tensor([5]), 0.0, [3])
    torch.testing.assert_close(both[:1, :5], alone, atol=1e-15, rtol=0)


def batch() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(16, 11, 24, generator=generator)
    mask = torch.rand(16, 11, generator=generator) < 0.8
    return hidden, mask, torch.arange(16) % 2 == 0, torch.arange(16) // 4


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_give_every_group_the_mass_of_the_method(name):
    hidden, mask, positive, group = batch()
    share = torch.rand(16, generator=torch.Generator().manual_seed(1)) / mask.sum(1)
    share[group == 3] = 0  # a group that the loss does not see
    tensors = hidden, mask, positive, group
    method, reports = token_weights_with_reports(*tensors, rank=6, seed=3)
    weights, same = token_weights_with_reports(
        *tensors, rank=6, seed=3, share=share, weights=name, method="gram"
    )
    assert torch.equal(weights[positive], torch.ones_like(weights[positive]))
    for number in range(4):
        negatives = mask & (~positive & (group == number)).unsqueeze(1)
        part = share if number < 3 else torch.ones(16)
        ours, theirs = (
            float((part.double().unsqueeze(1) * found.double())[negatives].sum())
            for found in (weights, method)
        )
        assert ours == pytest.approx(theirs, rel=1e-5)  # fp32 weights, of two methods
        assert same[number].q_low == pytest.approx(reports[number].q_low, rel=1e-5)
        used = float(weights[negatives].double().mean())
        assert same[number].mean_weight == pytest.approx(used, rel=1e-6)
        assert len(weights[negatives].unique()) == 1 or name == "random"
    again, _ = token_weights_with_reports(
        *tensors, rank=6, seed=3, share=share, weights=name, method="gram"
    )
    assert torch.equal(again, weights)
