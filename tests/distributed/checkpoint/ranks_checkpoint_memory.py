"""Memory that saving and loading take beside the state itself, of one rank.

Argument: an empty folder. Prints bytes of the state, and at the peaks above what was there before.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path

import tiny_checkpoint as tiny
import torch.distributed as dist
from transformers import AutoModelForCausalLM, LlamaConfig

from megatron_resrl.checkpoint import Retention, TrainerState, load_checkpoint
from megatron_resrl.checkpoint.checkpoint import begin_save
from megatron_resrl.checkpoint.host_copies import HostMemory
from megatron_resrl.platform.distributed import initialize
from megatron_resrl.platform.memory_peaks import ResidentPeaks
from megatron_resrl.rollout.worker import build_policy

CONFIG = LlamaConfig(
    vocab_size=4096,
    hidden_size=512,
    intermediate_size=1536,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=4,
    tie_word_embeddings=True,
)


def main(work: Path) -> None:
    model = AutoModelForCausalLM.from_config(CONFIG)
    model.save_pretrained(work / "model")
    del model
    recipe = tiny.recipe(work / "model", {})
    initialize(recipe.parallel, 0)
    policy = build_policy(recipe)
    tiny.take_step(policy, 1)
    peaks = ResidentPeaks()

    def extra(action: Callable[[], object]) -> int:
        gc.collect()
        peaks.take()
        before = peaks.take()
        action()
        return peaks.take() - before

    def save(step: int, copies: HostMemory | None = None) -> Path:
        state = TrainerState(step, {})
        return begin_save(work, policy, state, retention=Retention(1), copies=copies).finish()

    memory = HostMemory()
    save(1)  # Imports, the first use of files and threads.
    found = {
        "state": 16 * sum(p.numel() for m in policy.modules for p in m.parameters()),
        "waiting": extra(lambda: save(2)),
        "background": extra(lambda: save(3, memory)),
        "background again": extra(lambda: save(4, memory)),
        "load": extra(lambda: load_checkpoint(work / "checkpoints" / "step_000004", policy)),
    }
    files = (work / "checkpoints" / "step_000004").rglob("*")
    found["files"] = sum(file.stat().st_size for file in files if file.is_file())
    print("RESULT " + json.dumps(found))


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main(Path(sys.argv[1]))
