"""How others write the state that `checkpoint.py` saves."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from megatron.core import dist_checkpointing, parallel_state

from megatron_resrl.policy.policy import Policy


def peers_of(policy: Policy, work: Path) -> dict[str, Callable[[], None]]:
    """How others save the same state."""
    optimizer = policy.optimizer.chained_optimizers[0]

    def plain() -> None:
        tensors = [dict(policy.modules[0].named_parameters()), optimizer.get_parameters()]
        tensors.append(optimizer.optimizer.state_dict())
        with (work / "plain.pt").open("wb") as file:
            torch.save(tensors, file)
            os.fsync(file.fileno())

    def megatron(kind: str) -> None:
        shutil.rmtree(work / "megatron", ignore_errors=True)
        (work / "megatron").mkdir()
        metadata = {
            "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
            "distrib_optim_sharding_type": kind,
            "chained_optim_avoid_prefix": True,
        }
        state = {"model": policy.modules[0].sharded_state_dict(metadata=metadata)}
        state["optimizer"] = policy.optimizer.sharded_state_dict(state, metadata=metadata)
        dist_checkpointing.save(state, str(work / "megatron"))

    return {
        "torch.save": plain,
        "fully_reshardable": lambda: megatron("fully_reshardable"),
        "dp_reshardable": lambda: megatron("dp_reshardable"),
    }


def write_bytes(file: Path, size: int) -> None:
    """Writes so many bytes, synced to disk, with no other work than that."""
    block = bytes(1 << 24)
    with file.open("wb", buffering=0) as opened:
        for begin in range(0, size, len(block)):
            opened.write(block[: size - begin])
        os.fsync(opened.fileno())
