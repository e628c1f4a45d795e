"""WebShop's purchases, in a shop that stands in for the package's."""

from __future__ import annotations

import random
import sys
import types

import pytest
import small_webshop

from megatron_resrl.data.records import PromptRecord
from megatron_resrl.errors import SettingError
from megatron_resrl.rollout.environments import webshop_game
from megatron_resrl.rollout.environments.registry import get_environment
from megatron_resrl.rollout.environments.webshop_game import WebShopGame


def record(**extra: object) -> PromptRecord:
    return PromptRecord(0, [{"role": "user", "content": "play"}], "", "test", extra)


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("web_agent_site")
    monkeypatch.setitem(sys.modules, "web_agent_site", package)
    monkeypatch.setitem(sys.modules, "web_agent_site.envs", small_webshop)
    monkeypatch.setattr(webshop_game, "_servers", {})
    monkeypatch.setattr(small_webshop.Server, "opened", 0)


@pytest.mark.usefixtures("shop")
def test_webshop_game_scores_what_is_bought() -> None:
    game = WebShopGame(show_commands=True)
    opening = game.reset(record(goal=2), (0,))
    assert opening == "WebShop [SEP] buy thing 2 [SEP] search\n\nPossible commands: search[words]"
    results = game.step("search[a thing]")
    assert results.text.endswith(
        "Possible commands: click[back to search], click[b001], click[b002]"
    )
    assert game.step("click[b009]").text == results.text
    assert game.step("click[b001]").score == 0.0
    bought = game.step("click[buy now]")
    assert (bought.done, bought.score, bought.text) == (True, 0.5, "")


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize(("product", "score"), [("b001", 0.0), ("b002", 1.0)])
def test_webshop_game_may_score_success_alone(product: str, score: float) -> None:
    game = WebShopGame(score="success")
    game.reset(record(goal=0), (0,))
    for action in ("search[a thing]", f"click[{product}]"):
        game.step(action)
    assert game.step("click[buy now]").score == score


@pytest.mark.usefixtures("shop")
def test_webshop_games_share_the_shop_and_no_basket() -> None:
    games = [WebShopGame() for _ in range(3)]
    openings = {game.reset(record(goal=1), (0,)) for game in games}
    assert openings == {"WebShop [SEP] buy thing 1 [SEP] search"}
    assert small_webshop.Server.opened == 1
    for game, product in zip(games, ("b001", "b002", "b001"), strict=True):
        game.step("search[a thing]")
        game.step(f"click[{product}]")
    assert [game.step("click[buy now]").score for game in games] == [0.5, 1.0, 0.5]
    sessions = games[0]._shop.server.user_sessions
    assert len(sessions) == 3
    for game in games:
        game.close()
    assert sessions == {}


@pytest.mark.usefixtures("shop")
def test_webshop_games_of_processes_have_the_same_goals() -> None:
    prices = set()
    for number in range(2):
        webshop_game._servers.clear()  # As in another process.
        random.seed(number)
        before = random.getstate()
        game = WebShopGame()
        game.reset(record(goal=0), (0,))
        prices.add(game._shop.server.price)
        assert random.getstate() == before
    assert len(prices) == 1


@pytest.mark.usefixtures("shop")
def test_webshop_game_draws_goals_of_training() -> None:
    game = WebShopGame({"num_products": 502})
    openings = {game.reset(record(seed=seed), (0,)) for seed in range(8)}
    assert openings == {f"WebShop [SEP] buy thing {goal} [SEP] search" for goal in (500, 501)}


@pytest.mark.usefixtures("shop")
def test_webshop_game_refuses_goals_that_are_none() -> None:
    game = WebShopGame()
    for goal in (3, -1, "1", True):
        with pytest.raises(ValueError, match="column goal of prompt 0 of test is"):
            game.reset(record(goal=goal), (0,))
    with pytest.raises(ValueError, match="give reward or success"):
        WebShopGame(score="both")


def test_webshop_game_says_where_its_package_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "web_agent_site", None)
    said = r"'webshop'.*web_agent_site.envs is not installed.*checkout of github.com/princeton-nlp"
    with pytest.raises(SettingError, match=said):
        get_environment("webshop", {})
