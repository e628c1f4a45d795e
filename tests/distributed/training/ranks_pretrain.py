"""Steps of pretraining from fresh weights, in every layout of this number of ranks.

Arguments: folder of the models, prefix of the token files, number of steps. Rank 0 prints one line
of JSON per case, with a digest of the fresh weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
from layouts import begin_layout

from megatron_resrl.config.schema import (
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PrecisionConfig,
)
from megatron_resrl.config.schema_pretrain import PretrainDataConfig
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.platform import distributed as platform
from megatron_resrl.policy.policy import Policy
from megatron_resrl.training.pretrain import read_batch
from megatron_resrl.training.pretraining_data import open_data
from megatron_resrl.training.supervised import supervised_step
from megatron_resrl.weights.fresh import FreshWeights
from megatron_resrl.weights.hugging_face import export_weights

BATCH, LENGTH = 4, 16
SP2 = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
PP2 = {"pipeline_model_parallel_size": 2}
LAYOUTS: dict[int, dict[str, dict[str, Any]]] = {
    1: {"one": {}},
    2: {
        "TP2+SP": SP2,
        "PP2": PP2,
        "VPP2": PP2 | {"virtual_pipeline_model_parallel_size": 2},
        "CP2": {"context_parallel_size": 2},
        "DP2": {},
        "EP2": {"expert_model_parallel_size": 2},
        "TP2+SP EP2": SP2 | {"expert_model_parallel_size": 2, "expert_tensor_parallel_size": 1},
    },
}
MODELS = ("llama", "qwen3_moe")
BALANCED = {"moe_aux_loss_coeff": 0.1, "moe_router_load_balancing_type": "aux_loss"}


def measure(
    model: Path, prefix: str, parallel: ParallelConfig, steps: int, *, document_mask: bool
) -> dict[str, Any]:
    begin_layout(parallel, seed=0)
    experts = BALANCED if "moe" in model.name else {}
    policy = Policy.build(
        ModelConfig(str(model), megatron=experts),
        parallel,
        PrecisionConfig("fp32"),
        optimizer=OptimizerConfig(lr=1e-3, lr_warmup_steps=0, adam_eps=1e-6),
        sequence_packing=document_mask,
        fresh=FreshWeights(5, 0.08),
    )
    digest = hashlib.sha256()
    for name, tensor in sorted(export_weights(policy.modules, policy.hf_config)):
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    data = PretrainDataConfig(train_files=(prefix,), sequence_length=LENGTH)
    sequences = open_data(data, 1, seed=2).training
    metrics = []
    for step in range(steps):
        numbers = range(BATCH * step, BATCH * (step + 1))
        batch = read_batch(sequences, numbers, 2, document_mask=document_mask)
        metrics.append(supervised_step(policy, batch, 1e-3, PhaseTimers()).metrics)
    return {"weights": digest.hexdigest(), "steps": metrics}


def main() -> None:
    models, prefix, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    for layout, sizes in LAYOUTS[int(os.environ["WORLD_SIZE"])].items():
        for model in MODELS:
            if "EP" in layout and "moe" not in model:
                continue
            for document_mask in (False, True):
                if document_mask and (layout == "VPP2" or "moe" in model):
                    continue
                parallel = ParallelConfig(**sizes, timeout_minutes=1.0)
                case = {"layout": layout, "model": model, "document_mask": document_mask}
                case |= measure(
                    models / model, prefix, parallel, steps, document_mask=document_mask
                )
                if dist.get_rank() == 0:
                    print(json.dumps(case))
    platform.shutdown()


if __name__ == "__main__":
    main()
