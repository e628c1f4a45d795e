"""Two data-parallel ranks, the second of which is slow when it begins an update."""

from __future__ import annotations

import logging
import sys
import time

import torch.distributed as dist
from tiny_stage import NextTokenSettings, train

from megatron_resrl.config.schema import (
    CheckpointConfig,
    LoggingConfig,
    ModelConfig,
    PrecisionConfig,
)
from megatron_resrl.config.schema_health import HealthConfig

SLOW_S = 1.0


def be_slow(event: str, arguments: tuple) -> None:
    if event == "megatron_resrl.phase" and arguments[0] == "update" and dist.get_rank() == 1:
        time.sleep(SLOW_S)


def main(model: str, output_dir: str) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    sys.addaudithook(be_slow)
    train(
        NextTokenSettings(
            output_dir=output_dir,
            steps=4,
            model=ModelConfig(model),
            precision=PrecisionConfig("fp32"),
            checkpoint=CheckpointConfig(save_every=0, export_hf=False),
            health=HealthConfig(straggler_ratio=1.3, straggler_steps=3),
            logging=LoggingConfig(tensorboard=False, progress_bar=False),
            sequences=((5, 6, 7, 8),) * 8,
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
