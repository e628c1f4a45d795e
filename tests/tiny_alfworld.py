"""A game of ALFWorld's kind that needs no download: one mug, a counter and a desk."""

from __future__ import annotations

import json
from pathlib import Path

PROBLEM = """\
(define (problem mug)
  (:domain alfred)
  (:objects
    agent1 - agent
    Mug_bar__plus_00_dot_10 - object
    MugType - otype
    CounterTopType DeskType - rtype
    CounterTop_bar__plus_01_dot_00 Desk_bar__plus_02_dot_00 - receptacle
    loc_bar_0 loc_bar_1 loc_bar_2 - location)
  (:init
    (= (total-cost) 0)
    (receptacleType CounterTop_bar__plus_01_dot_00 CounterTopType)
    (receptacleType Desk_bar__plus_02_dot_00 DeskType)
    (objectType Mug_bar__plus_00_dot_10 MugType)
    (canContain CounterTopType MugType)
    (canContain DeskType MugType)
    (pickupable Mug_bar__plus_00_dot_10)
    (atLocation agent1 loc_bar_0)
    (receptacleAtLocation CounterTop_bar__plus_01_dot_00 loc_bar_1)
    (receptacleAtLocation Desk_bar__plus_02_dot_00 loc_bar_2)
    (objectAtLocation Mug_bar__plus_00_dot_10 loc_bar_1)
    (inReceptacle Mug_bar__plus_00_dot_10 CounterTop_bar__plus_01_dot_00))
  (:goal
    (and (exists (?r - receptacle)
      (exists (?o - object)
        (and (inReceptacle ?o ?r) (receptacleType ?r DeskType) (objectType ?o MugType))))))
  (:metric minimize (total-cost)))
"""
SOLUTION = (
    "go to countertop 1",
    "take mug 1 from countertop 1",
    "go to desk 1",
    "move mug 1 to desk 1",
)
"""Done by the last."""


def write_games(data: Path, numbers: dict[str, int]) -> None:
    """Writes games into a folder as `alfworld-download` fills it, with the package's own rules.

    Args:
        data: The folder.
        numbers: Folder of a split -> how many games of it.
    """
    from alfworld.info import ALFRED_PDDL_PATH, ALFRED_TWL2_PATH

    grammar = Path(ALFRED_TWL2_PATH).read_text()
    game = {
        "pddl_domain": Path(ALFRED_PDDL_PATH).read_text(),
        "grammar": grammar.replace("UNKNOWN GOAL", "put a mug on the desk"),
        "pddl_problem": PROBLEM,
        "solvable": True,
    }
    for split, number in numbers.items():
        for trial in range(number):
            folder = data / "json_2.1.1" / split / f"put_mug_{trial}"
            folder.mkdir(parents=True)
            (folder / "game.tw-pddl").write_text(json.dumps(game))
