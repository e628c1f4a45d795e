"""Purchases in WebShop, a shop of Amazon's products in text."""

from __future__ import annotations

import itertools
import json
import os
import random
import threading
from collections.abc import Mapping
from typing import Any

from megatron_resrl.data.records import PromptRecord
from megatron_resrl.rollout.environments.packages import import_package
from megatron_resrl.rollout.environments.text_game import Played, TextGame, with_commands

_FIRST_TRAINING_GOAL = 500
"""The package's test goals are the 500 before."""
_SCORES = ("reward", "success")
_servers: dict[str, Any] = {}
"""Options -> the shop of this process: products and their index take minutes and gigabytes."""
_opening = threading.Lock()
_visits = itertools.count()


class WebShopGame(TextGame):
    """A purchase: `search[words]`, `click[what a page shows]`. It ends with `click[buy now]`; the
    score is how much of what was wanted the product has, from 0 to 1.

    A row's column `goal` is the number of the goal. A row without it gets one of those for
    training, drawn by the seed.
    """

    def __init__(
        self,
        options: Mapping[str, Any] | None = None,
        score: str = "reward",
        show_commands: bool = False,
        action_pattern: str | None = None,
    ) -> None:
        """
        Args:
            options: Keyword arguments of the package's `WebAgentTextEnv`, such as `num_products`
                and `human_goals`; `observation_mode` is `text` where they do not name it.
            score: `reward`: the package's; `success`: 1 where that is 1, otherwise 0.
            show_commands: Every page lists what can be done on it.
            action_pattern: See `TextGame`.

        Raises:
            ValueError: Another kind of score.
            MissingPackage: WebShop is not installed.
        """
        super().__init__(action_pattern)
        if score not in _SCORES:
            raise ValueError(f"score is {score!r}; give {' or '.join(_SCORES)}")
        self._package = import_package(
            "web_agent_site.envs",
            source="put a checkout of github.com/princeton-nlp/WebShop on PYTHONPATH, as "
            "docs/environments.md says",
        )
        self._options = {"observation_mode": "text", **(options or {})}
        self._success_only = score == "success"
        self._show_commands = show_commands
        self._shop: Any = None

    def begin(self, record: PromptRecord, seed: int) -> str | None:
        """See `TextGame.begin`: what is wanted, and the shop's first page.

        Raises:
            ValueError: There is no such goal.
        """
        self.close()
        self._shop = self._opened()
        goals = len(self._shop.server.goals)
        goal = record.extra.get("goal")
        if goal is None:
            first = _FIRST_TRAINING_GOAL if goals > _FIRST_TRAINING_GOAL else 0
            goal = first + seed % (goals - first)
        if isinstance(goal, bool) or not isinstance(goal, int) or not 0 <= goal < goals:
            raise ValueError(f"column goal of {record} is {goal!r}; the shop has 0 to {goals - 1}")
        page, _ = self._shop.reset(session=goal)
        return self._text(page)

    def play(self, command: str) -> Played:
        """See `TextGame.play`. What a page does not have changes nothing."""
        page, reward, done, _ = self._shop.step(" ".join(command.split()))
        if self._success_only:
            reward = float(reward == 1)
        return Played("" if done else self._text(page), float(reward), bool(done))

    def close(self) -> None:
        """Forgets the visit; the shop is kept for others."""
        if self._shop is not None:
            self._shop.server.user_sessions.pop(self._shop.session, None)
            self._shop = None

    def _opened(self) -> Any:
        """A visit of the shop that this process has for these options."""
        options = dict(self._options)
        # Visits with one name would share their basket.
        options["session_prefix"] = f"{os.getpid()}_{next(_visits)}_"
        key = json.dumps(self._options, sort_keys=True, default=repr)
        with _opening:
            if key in _servers:
                options["server"] = _servers[key]
            # The package draws prices of goals from here, and a group's goals have to be alike in
            # all processes.
            state = random.getstate()
            random.seed(0)
            try:
                visit = self._package.WebAgentTextEnv(**options)
            finally:
                random.setstate(state)
            # The package visits a goal of its own choice while it is made.
            visit.server.user_sessions.pop(visit.session, None)
            _servers[key] = visit.server
        return visit

    def _text(self, page: str) -> str:
        if not self._show_commands:
            return page
        can = self._shop.get_available_actions()
        search = ["search[words]"] if can["has_search_bar"] else []
        buttons = (f"click[{each}]" for each in can["clickables"] if each != "search")
        return with_commands(page, [*search, *buttons])
