"""The command `serve`: a node that only generates. Its work is in `rollout/serving/nodes/`."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from megatron_resrl.checks.recipe import require_valid
from megatron_resrl.cli.command import CliCommand, print_settings
from megatron_resrl.config.load import load_recipe
from megatron_resrl.config.schema import Recipe


def _serve(path: str | None, overrides: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # It says every request.
    recipe = load_recipe(path, overrides)
    require_valid(recipe, 1, "serve")
    # Here, because they import torch.
    from megatron_resrl.rollout.serving.needed_model import NeededModel
    from megatron_resrl.rollout.serving.nodes.fleet import ServerSettings
    from megatron_resrl.rollout.serving.nodes.serve import serve
    from megatron_resrl.rollout.weight_sync.backends import server_arguments

    rollout = recipe.rollout
    serve(
        ServerSettings(
            NeededModel.of(recipe.model, recipe.precision, recipe.data, rollout),
            recipe.vllm,
            Path(recipe.output_dir),
            colocated=rollout.placement == "colocated",
            weight_flags=server_arguments(recipe.vllm, rollout.placement),
        )
    )
    return 0


SERVE = CliCommand(
    _serve,
    """\
vLLM servers on a node that only generates (vllm.nodes); one process per node, which ends
with the job (MEGATRON_RESRL_STORE=host:port names the host of rank 0)""",
    partial(print_settings, "serve", "Serves a run whose ranks train on other nodes.", Recipe),
)
