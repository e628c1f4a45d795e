"""Saves under one layout, loads under others.

Arguments: write|read, folder of the models, working folder. `write` saves after two steps in each
source layout of this world size and notes the weights then and after a third step; `read` loads
them into each target layout and prints, from rank 0, how far it is from what was noted.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import tiny_checkpoint as tiny
import torch
import torch.distributed as dist
from layouts import begin_layout
from megatron.core import dist_checkpointing

from megatron_resrl.checkpoint import (
    TrainerState,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from megatron_resrl.platform.distributed import gather_objects
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.worker import build_policy
from megatron_resrl.weights.hugging_face import export_weights

LAYOUTS: dict[str, dict] = {
    "one": {},
    "TP2": {"tensor_model_parallel_size": 2},
    "PP2": {"pipeline_model_parallel_size": 2},
    "DP2": {},
    "CP2": {"context_parallel_size": 2},
    "TP2xEP2": {
        "tensor_model_parallel_size": 2,
        "sequence_parallel": True,
        "expert_model_parallel_size": 2,
        "expert_tensor_parallel_size": 1,
    },
    "plain one": {"use_distributed_optimizer": False},
    "plain DP2xEP2": {"use_distributed_optimizer": False, "expert_model_parallel_size": 2},
}
SOURCES = {
    1: [("qwen3", "one"), ("qwen3_moe", "one")],
    2: [
        ("qwen3", "TP2"),
        ("tied_llama", "PP2"),
        ("qwen3", "DP2"),
        ("qwen3_moe", "TP2xEP2"),
        ("qwen3_moe", "plain DP2xEP2"),
    ],
}
TARGETS = {
    1: [
        ("qwen3", "TP2", "one"),
        ("tied_llama", "PP2", "one"),
        ("qwen3", "DP2", "one"),
        ("qwen3_moe", "TP2xEP2", "one"),
        ("qwen3_moe", "plain DP2xEP2", "plain one"),
    ],
    2: [
        ("qwen3", "one", "TP2"),
        ("qwen3", "one", "CP2"),
        ("qwen3", "one", "DP2"),
        ("qwen3", "TP2", "PP2"),
        ("tied_llama", "PP2", "TP2"),
        ("qwen3_moe", "one", "TP2xEP2"),
    ],
}


def build(models: Path, model: str, layout: str) -> Policy:
    recipe = tiny.recipe(models / model, LAYOUTS[layout])
    begin_layout(recipe.parallel, 0)
    return build_policy(recipe)


def exported(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in export_weights(policy.modules, policy.hf_config)}


def write(models: Path, work: Path) -> None:
    for model, layout in SOURCES[dist.get_world_size()]:
        policy = build(models, model, layout)
        for step in (1, 2):
            tiny.take_step(policy, step)
        folder = work / f"{model} {layout}"
        save_checkpoint(folder, policy, TrainerState(2, {}), keep_last=1)
        before = exported(policy)
        grad_norm = tiny.take_step(policy, 3).grad_norm
        noted = {"before": before, "grad_norm": grad_norm, "after": exported(policy)}
        if dist.get_rank() == 0:
            torch.save(noted, folder / "noted.pt")


def read(models: Path, work: Path) -> None:
    found = {}
    for model, source, target in TARGETS[dist.get_world_size()]:
        policy = build(models, model, target)
        folder = work / f"{model} {source}"
        noted = torch.load(folder / "noted.pt")
        warnings = _Warnings()
        logging.getLogger("megatron_resrl").addHandler(warnings)
        path = latest_checkpoint(folder)
        load_checkpoint(path, policy)
        logging.getLogger("megatron_resrl").removeHandler(warnings)
        loaded = exported(policy)
        again = save_checkpoint(
            work / f"{model} {source} {target}", policy, TrainerState(2, {}), keep_last=1
        )
        grad_norm = tiny.take_step(policy, 3).grad_norm
        after = exported(policy)
        result = {
            "weights that differ": [
                n for n, t in noted["before"].items() if not _same(t, loaded[n])
            ],
            "stored tensors": _compare_stored(path, again),
            "grad norms": [noted["grad_norm"], grad_norm],
            "after another step": max(
                (t - after[n]).abs().max().item() for n, t in noted["after"].items()
            ),
            "moved by that step": max(
                (t - loaded[n]).abs().max().item() for n, t in noted["after"].items()
            ),
            "warnings": warnings.messages,
        }
        found[f"{source} to {target}, {model}"] = gather_objects(result)
    if dist.get_rank() == 0:
        print("RESULT " + json.dumps(found))


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first, second)


def _compare_stored(first: Path, second: Path) -> dict[str, Any]:
    """Compares all weights and moments of two checkpoints, padding rows of vocabularies aside."""
    tensors = [
        {name: value for name, value in stored.items() if torch.is_tensor(value)}
        for stored in (dist_checkpointing.load_plain_tensors(str(p)) for p in (first, second))
    ]
    differing = []
    for name, tensor in tensors[0].items():
        other = tensors[1].get(name, torch.empty(0))
        if name.endswith(("word_embeddings.weight", "output_layer.weight")):
            tensor, other = tensor[: tiny.VOCABULARY], other[: tiny.VOCABULARY]
        if not _same(tensor, other):
            differing.append(name)
    moments = [name for name in tensors[0] if "exp_avg" in name]
    return {
        "differing": differing,
        "only in the second": sorted(set(tensors[1]) - set(tensors[0])),
        "moments": len(moments),
        "zero moments": [name for name in moments if not tensors[0][name].any()],
    }


if __name__ == "__main__":
    dist.init_process_group("gloo")
    {"write": write, "read": read}[sys.argv[1]](*map(Path, sys.argv[2:]))
