"""Two ranks: rank 0 speaks to a server that is killed mid-rollout; both receive the same.

Arguments: folder of the model, output folder.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch.distributed as dist
from served_engine import NoSender, served_recipe, start_engine

from megatron_resrl.config.schema import ParallelConfig
from megatron_resrl.platform.distributed import gather_objects, initialize
from megatron_resrl.rollout.engine import GenerationRequest, SamplingParams
from megatron_resrl.rollout.serving.pool import RolloutFailure


class CollectiveSender(NoSender):
    """Hangs unless all ranks take part."""

    def connect(self, servers):
        dist.barrier()
        super().connect(servers)

    def send(self, servers, version):
        dist.barrier()
        return super().send(servers, version)


def main() -> None:
    initialize(ParallelConfig(timeout_minutes=2), 0)
    recipe = served_recipe(
        Path(sys.argv[1]), Path(sys.argv[2]), max_running_requests=4, stall_timeout_s=60
    )
    sender = CollectiveSender()
    engine = start_engine(recipe, sender)
    try:
        engine.update_weights(3)
        first = threading.Event()
        pending = engine.begin(
            GenerationRequest(
                [[3, 4], [5, 6], [7, 8]],
                SamplingParams(200, (), n=4),
                seed=(0,),
                on_group=lambda *_: first.set(),
            )
        )
        if dist.get_rank() == 0:
            assert first.wait(60)
            os.killpg(engine._pool.servers[0].process.pid, signal.SIGKILL)
        responses = pending.result()
        assert [len(group) for group in responses] == [4, 4, 4]
        assert all(r.weight_versions == (3, 3) for group in responses for r in group)
        theirs = gather_objects(responses)
        assert theirs[0] == theirs[1]
        assert [version for version, _ in sender.sent] == [3, 3]
        assert first.is_set() == (dist.get_rank() == 0)
        with pytest.raises(RolloutFailure, match="refused it"):
            engine.generate(GenerationRequest([[10**6]], SamplingParams(4, ()), seed=(1,)))
    finally:
        engine.close()
    print(f"rank {dist.get_rank()} done")


main()
