"""FP8 in layouts of two ranks: log-probabilities, and which layers compute in FP8.

Arguments: folder of the model, folder for the results, layout. Each rank saves one file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from layouts import begin_layout
from megatron.core.transformer.transformer_layer import TransformerLayer
from tiny_scoring import SEQUENCES
from transformer_engine.pytorch.module.layernorm_linear import LayerNormLinear
from transformer_engine.pytorch.quantization import FP8GlobalStateManager

from megatron_resrl.config.load import load_recipe
from megatron_resrl.policy.batches import MicroBatch, TokenBatch
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.worker import build_policy

LAYOUTS = {
    "tp": ("tensor_model_parallel_size=2", "sequence_parallel=true"),
    "cp": ("context_parallel_size=2",),
    "pp": ("pipeline_model_parallel_size=2",),
    "vpp": ("pipeline_model_parallel_size=2", "virtual_pipeline_model_parallel_size=2"),
}
RECIPES = ("delayed", "tensorwise", "blockwise", "mxfp8")


def build(model: str, layout: str, *precision: str) -> Policy:
    FP8GlobalStateManager.reset()
    settings = (f"--model.path={model}", "--precision.params_dtype=bf16", "--optimizer.lr=0")
    parallel = tuple(f"--parallel.{each}" for each in LAYOUTS[layout])
    recipe = load_recipe(
        None, (*settings, *parallel, *(f"--precision.{each}" for each in precision))
    )
    begin_layout(recipe.parallel, 0)
    return build_policy(recipe)


def pass_over(policy: Policy, *, recompute: bool = False) -> dict:
    """One scoring pass and one update.

    Returns:
        Log-probabilities by sequence and position on the last stage, the gradient norm, and
        whether each layer that ran in the update computed in FP8, by its number.
    """
    policy.config.recompute_granularity = "full" if recompute else None
    policy.config.recompute_method, policy.config.recompute_num_layers = "uniform", 1
    batches = policy.micro_batches(TokenBatch.from_sequences(SEQUENCES), 2)
    scored = policy.score(batches)
    in_fp8: dict[int, bool] = {}
    layers = {
        id(layer.self_attention.linear_qkv): layer.layer_number
        for module in policy.modules
        for layer in module.modules()
        if isinstance(layer, TransformerLayer)
    }
    forward = LayerNormLinear.forward

    def noted(self: LayerNormLinear, *args: object, **options: object) -> object:
        if id(self) in layers:
            in_fp8[layers[id(self)]] = FP8GlobalStateManager.is_fp8_enabled()
        return forward(self, *args, **options)

    def loss(log_probs: torch.Tensor, entropy: torch.Tensor, batch: MicroBatch) -> tuple:
        return -log_probs.sum(), None

    with mock.patch.object(LayerNormLinear, "forward", noted):
        result = policy.update(batches, loss)
    log_probs = {
        (sequence, position): value
        for scores, batch in zip(scored, batches if scored else (), strict=True)
        for sequence, position, value in zip(
            batch.sequence_index.tolist(),
            batch.response_position.tolist(),
            scores.log_probs.tolist(),
            strict=True,
        )
    }
    return {"log_probs": log_probs, "grad_norm": result.grad_norm, "in_fp8": in_fp8}


def main() -> None:
    model, folder, layout = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    found = {
        recipe: pass_over(build(model, layout, "fp8=hybrid", f"fp8_recipe={recipe}"))
        for recipe in RECIPES
    }
    ends = ("num_layers_at_start_in_bf16=1", "num_layers_at_end_in_bf16=2")
    policy = build(model, layout, "fp8=hybrid", *ends)
    found["ends"] = pass_over(policy)
    found["ends_recomputed"] = pass_over(policy, recompute=True)
    torch.save(found, folder / f"{layout}_{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
