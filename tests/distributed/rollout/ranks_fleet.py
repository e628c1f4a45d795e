"""Two ranks, each the first of a node: rank 0 orders a server of the other, and reads its log.

Arguments: folder of the model, output folder, what runs in the place of a server and ends.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["LOCAL_RANK"] = "0"

import torch.distributed as dist
from served_engine import wait_until
from servers_of import needed_model

from megatron_resrl.config.schema import ModelConfig, ParallelConfig, Recipe, VllmConfig
from megatron_resrl.platform.distributed import gather_objects, initialize, shutdown
from megatron_resrl.rollout.serving.nodes.fleet import ServerSettings, assemble


def main() -> None:
    model, output, ends = sys.argv[1:]
    initialize(ParallelConfig(timeout_minutes=2), 0)
    recipe = Recipe(model=ModelConfig(model), vllm=VllmConfig(servers=2, python=ends))
    settings = ServerSettings(
        needed_model(recipe), recipe.vllm, Path(output), colocated=True, weight_flags=((), {})
    )
    for _ in range(2):  # Engines that use one store after the other.
        fleet = assemble(settings)
        fleet.begin()
        if dist.get_rank() == 0:
            own, last = fleet.servers[0], fleet.servers[3]
            assert len(fleet.servers) == 4
            assert [server.rank_beside for server in fleet.servers] == [0, 0, 1, 1]
            assert (own.spec.host, own.spec.name[:8]) == ("127.0.0.1", "server 0")
            process = last.spec.start()
            wait_until(process.why_ended)
            said = process.describe(process.why_ended())
            assert "server 3 on" in said
            assert "ended with status 3" in said
            assert "no room" in said
        gather_objects(None)
        fleet.close()
        gather_objects(None)
    print(f"rank {dist.get_rank()} done")
    shutdown()


main()
