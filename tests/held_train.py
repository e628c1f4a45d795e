"""Trains a recipe and waits before a step as long as a file is there.

Arguments: folder of the files, recipe, settings. Before step N it writes `step_N` into the folder,
and waits while there is a file `hold_N`.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from megatron_resrl.cli import run


def hold(event: str, details: tuple[Any, ...]) -> None:
    if event == "megatron_resrl.step":
        (FOLDER / f"step_{details[0]}").touch()
        while (FOLDER / f"hold_{details[0]}").exists():
            time.sleep(0.1)


if __name__ == "__main__":  # Processes that grade import this file, too.
    FOLDER = Path(sys.argv.pop(1))
    sys.addaudithook(hold)
    sys.argv.insert(1, "train")
    run()
