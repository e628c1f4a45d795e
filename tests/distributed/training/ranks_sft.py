"""Runs the recipes of fine-tuning whose paths are the arguments, one after the other."""

from __future__ import annotations

import sys

from megatron_resrl.config.load import load_recipe
from megatron_resrl.config.schema_sft import SftRecipe
from megatron_resrl.training.sft import train

for path in sys.argv[1:]:
    train(load_recipe(path, [], SftRecipe))
