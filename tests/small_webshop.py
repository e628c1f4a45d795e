"""Stands in for WebShop's package, which no registry has: three goals, two pages, one shelf.

What is here has the names, arguments and answers of `web_agent_site.envs.WebAgentTextEnv` at
princeton-nlp/WebShop 64fa2a5.
"""

from __future__ import annotations

import random
from typing import Any

SHELF = {"b001": 0.5, "b002": 1.0}
"""Product -> reward of buying it, whatever the goal."""


class Server:
    """The shop: its goals, and who visits it."""

    opened = 0

    def __init__(self, goals: int) -> None:
        Server.opened += 1
        self.goals = [{"instruction_text": f"buy thing {number}"} for number in range(goals)]
        self.price = random.random()
        """As in the package, what goals say of prices is drawn."""
        self.user_sessions: dict[str, dict[str, Any]] = {}


class WebAgentTextEnv:
    """One visit."""

    def __init__(
        self,
        observation_mode: str = "html",
        server: Server | None = None,
        num_products: int = 3,
        session_prefix: str | None = None,
    ) -> None:
        self.observation_mode = observation_mode
        self.session_prefix = session_prefix
        self.server = Server(num_products) if server is None else server
        self.reset()

    def reset(self, session: int | None = None) -> tuple[str, None]:
        name = "".join(random.choices("abc", k=10)) if session is None else str(session)
        self.session = (self.session_prefix or "") + name
        goal = random.randrange(len(self.server.goals)) if session is None else session
        # As in the package, a visit that is known goes on with its goal.
        own = self.server.user_sessions.setdefault(
            self.session, {"goal": self.server.goals[goal], "asin": None}
        )
        self._goal = own["goal"]["instruction_text"]
        self._page = "search"
        return self._text(), None

    def step(self, action: str) -> tuple[str, float, bool, None]:
        own = self.server.user_sessions[self.session]
        if action.startswith("search[") and self._page == "search":
            self._page = "results"
        elif action.startswith("click[") and action[6:-1] in self._clickables():
            name = action[6:-1]
            if name == "buy now":
                self._page = "done"
                return self._text(), SHELF[own["asin"]], True, None
            self._page = "search" if name == "back to search" else "item"
            own["asin"] = name if name in SHELF else None
        return self._text(), 0, False, None

    def get_available_actions(self) -> dict[str, Any]:
        return {"has_search_bar": self._page == "search", "clickables": self._clickables()}

    def _clickables(self) -> list[str]:
        return {
            "search": ["search"],
            "results": ["back to search", *SHELF],
            "item": ["back to search", "buy now"],
            "done": [],
        }[self._page]

    def _text(self) -> str:
        separator = " [SEP] " if self.observation_mode == "text" else "<p>"
        return separator.join(["WebShop", self._goal, self._page])
