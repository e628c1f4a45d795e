"""The number game hides, hints and scores."""

from __future__ import annotations

import pytest

from megatron_resrl.data.prompts import PromptRecord
from megatron_resrl.rollout.environments.number_game import NumberGame


def begun(answer: str = "7", seed: tuple[int, ...] = (0,), **options: object) -> NumberGame:
    game = NumberGame(**options)
    game.reset(PromptRecord(0, [{"role": "user", "content": "?"}], answer, "test", {}), seed)
    return game


def test_number_game_hints_lead_to_the_number() -> None:
    game = begun(turn_cost=0.25)
    assert game.step("I say 3").text == "higher"
    assert game.step("from 3 to 9").text == "lower"  # the last number counts
    found = game.step("7")
    assert found.done
    assert found.score == 0.5


def test_number_game_asks_for_a_number() -> None:
    observation = begun(high=9).step("hello")
    assert observation.text == "say a number from 1 to 9"
    assert not observation.done
    assert observation.score == 0.0


def test_number_game_draws_its_number_from_the_seed() -> None:
    def hidden(seed: tuple[int, ...]) -> int:
        game = begun(secret="random", high=1000, seed=seed)
        return next(guess for guess in range(1, 1001) if game.step(str(guess)).done)

    assert hidden((1, 2)) == hidden((1, 2))
    assert len({hidden((1, number)) for number in range(5)}) == 5


def test_number_game_refuses_a_number_out_of_range() -> None:
    with pytest.raises(ValueError, match="the ground truth is 12; give a number from 1 to 9"):
        begun("12", high=9)


@pytest.mark.parametrize("options", [{"low": 3, "high": 2}, {"secret": "none"}, {"turn_cost": 1.5}])
def test_number_game_refuses_bad_options(options: dict) -> None:
    with pytest.raises(ValueError, match="give"):
        NumberGame(**options)
