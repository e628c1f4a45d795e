"""A model whose logits are not numbers ends the run on all ranks, with its bad weights named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ranks import run_ranks
from tiny_recipe import write_model

WEIGHT = re.escape("model.embed_tokens.weight (1 of 2048 values)")


@pytest.mark.parametrize("layout", ["PP2", "DP2"])
def test_not_finite_logits_name_the_token_and_the_weight(tmp_path, layout):
    model = write_model(tmp_path / "model")
    script = Path(__file__).with_name("ranks_not_finite_logits.py")
    out = run_ranks(script, 2, model, layout)
    for rank in (0, 1):
        for phase, when in (("rollout", "rollout of training"), ("scoring", "scoring")):
            # Every token of the second prompt's responses, and of those that drew the bad one.
            assert re.search(
                rf"RANK {rank} {phase}: LogitsNotFinite True {when}: the model's logits are not "
                rf"finite: log-probabilities are not numbers for \d+ of \d+ tokens, and that of "
                rf"token \d of response \d to prompt \d is nan. Weights that are not finite: "
                rf"{WEIGHT}; if model.path = '{model}' has them already, use an undamaged copy",
                out,
            ), out
    if layout == "DP2":
        assert re.search(
            r"RANK 1 weighing: StatesNotFinite False scoring: hidden states of \d+ of \d+ tokens "
            r"are not finite .*, so that the model's logits are not finite; either model.path = ",
            out,
        ), out
