"""Loads checkpoints as Megatron-LM does, and computes logits: megatron-core and torch alone.

Arguments: "local" or "engine" for the kind of layers; then pairs of a file that gets logits and
a folder that --load would name.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tiny_megatron_lm as tiny
import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.tensor_parallel.random import initialize_rng_tracker
from megatron.core.transformer.moe import moe_utils


def logits(load: Path, *, engine: bool) -> torch.Tensor:
    """Of a fixed sequence, [tokens, rows of the vocabulary]."""
    named = (load / "latest_checkpointed_iteration.txt").read_text()
    assert named == "release"
    folder = str(load / named)
    assert dist_checkpointing.check_is_distributed_checkpoint(folder)
    common = dist_checkpointing.load_common_state_dict(folder)
    assert (common["checkpoint_version"], common["iteration"]) == (3.0, 0)
    args = common["args"]
    # The layout is this process's, as on Megatron-LM's command line, and not that of the files.
    args.tensor_model_parallel_size = args.pipeline_model_parallel_size = 1
    args.use_cpu_initialization = True
    model = tiny.build(args, engine=engine, engine_names=not engine).eval()
    metadata = dist_checkpointing.load_content_metadata(preloaded_state_dict=common)
    metadata |= {"dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    state = {"model": model.sharded_state_dict(metadata=metadata)}
    loaded = dist_checkpointing.load(state, folder, strict="raise_unexpected")
    model.load_state_dict(loaded["model"])
    count = tiny.TOKENS.shape[1]
    positions = torch.arange(count)[None]
    later = torch.ones(1, 1, count, count, dtype=torch.bool).triu(1)
    with torch.no_grad():
        return model(tiny.TOKENS, positions, later)[0]


def main() -> None:
    # megatron-core names the device of its rotary embedding and experts by this function.
    torch.cuda.current_device = lambda: torch.device("cpu")
    # Version 0.16 has this name with Transformer Engine only.
    moe_utils.te_general_gemm = None
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    initialize_rng_tracker(inference_rng_tracker=True)
    engine = sys.argv[1] == "engine"
    for file, load in zip(sys.argv[2::2], sys.argv[3::2], strict=True):
        torch.save(logits(Path(load), engine=engine), file)
    # Transformer Engine's layers run on a CPU with some help of the product.
    assert engine or not any(name.startswith("megatron_resrl") for name in sys.modules)


if __name__ == "__main__":
    main()
