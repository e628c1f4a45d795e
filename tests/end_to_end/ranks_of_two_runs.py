"""Trains like the product's command; the last rank gets further settings.

ranks_of_two_runs.py RECIPE [--setting=VALUE]
"""

from __future__ import annotations

import os
import sys

from megatron_resrl.cli import run

recipe, *settings = sys.argv[1:]
last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
sys.argv[1:] = ["train", recipe, *(settings if last else ())]
run()
