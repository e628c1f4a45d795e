"""Writes the question files of the recipes with agents: one row for each game or goal.

    python examples/paper/agents/prepare.py alfworld --output data
    python examples/paper/agents/prepare.py webshop --goals 12000 --output data

makes `<output>/<agent>_train.jsonl` and the suite's file, `<output>/<agent>.jsonl`. ALFWorld's rows
need its package and games. WebShop's are numbers: give as many as its package says to have loaded.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RULES = {
    "alfworld": (
        "You do an errand in a household, with one command in each turn. Say in a sentence or two "
        "what you think, and then the command, as in <action>go to fridge 1</action>. Commands "
        "are: go to, open, close, examine and use a thing; take a thing from another, move a thing "
        "to another; heat, cool and clean a thing with another, slice a thing with another; look; "
        "inventory."
    ),
    "webshop": (
        "You buy in a shop what you are told, with one action in each turn. Say in a sentence or "
        "two what you think, and then the action: <action>search[words]</action> on the page with "
        "the search bar, otherwise <action>click[...]</action> with the text of what is clicked, "
        "such as a product's number, an option or next >. Choose the options that are asked for. "
        "<action>click[buy now]</action> buys, and ends the visit."
    ),
}
TEST_GOALS = 500
"""Of WebShop: the first."""


def alfworld_rows(data: Path, split: str) -> Iterable[dict[str, Any]]:
    """One row for each game of a split; nobody reads the answer, because the environment scores."""
    from megatron_resrl.rollout.environments.alfworld_game import games_of

    for game in games_of(data, split):
        yield {
            "prompt": RULES["alfworld"],
            "answer": "-",
            "game": game.relative_to(data).as_posix(),
        }


def webshop_rows(goals: range) -> Iterable[dict[str, Any]]:
    """One row for each goal."""
    for goal in goals:
        yield {"prompt": RULES["webshop"], "answer": "-", "goal": goal}


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes a file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    print(f"{len(lines)} questions in {path}")


def main() -> None:
    """Writes both files of an agent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("agent", choices=sorted(RULES))
    parser.add_argument("--output", type=Path, default=Path("data"))
    parser.add_argument("--games", type=Path, help="ALFWorld's folder; default: the package's")
    parser.add_argument("--goals", type=int, help="that WebShop's package has loaded")
    given = parser.parse_args()
    if given.agent == "webshop" and (given.goals or 0) <= TEST_GOALS:
        parser.error(f"--goals is {given.goals}; give more than the {TEST_GOALS} of the test")
    train, test = (given.output / f"{given.agent}{part}.jsonl" for part in ("_train", ""))
    if given.agent == "webshop":
        write(train, webshop_rows(range(TEST_GOALS, given.goals)))
        write(test, webshop_rows(range(TEST_GOALS)))
        return
    if given.games is None:
        from alfworld.info import ALFWORLD_DATA

        given.games = Path(ALFWORLD_DATA)
    write(train, alfworld_rows(given.games, "train"))
    write(test, alfworld_rows(given.games, "eval_in_distribution"))


if __name__ == "__main__":
    main()
