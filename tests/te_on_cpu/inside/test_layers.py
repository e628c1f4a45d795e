"""The product's policy is made of Transformer Engine's layers, and its optimizer is FusedAdam."""

from __future__ import annotations

from collections import Counter

import pytest
import tiny_families as tiny
import torch
import transformer_engine.pytorch as te
import transformer_engine_torch
from compiled_in_torch import rotation
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from megatron_resrl.config.load import load_recipe
from megatron_resrl.errors import InputError
from megatron_resrl.platform.distributed import initialize
from megatron_resrl.policy.attention import SdpaCoreAttention
from megatron_resrl.policy.batches import MicroBatch, TokenBatch, TokenSequence
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.worker import build_policy


def test_policy_of_a_recipe_has_engine_layers(build) -> None:
    policy = build()
    found = Counter(
        kind
        for module in policy.modules[0].modules()
        for kind in (te.LayerNormLinear, te.Linear, te.DotProductAttention, te.RMSNorm)
        if isinstance(module, kind)
    )
    layers = policy.config.num_layers
    assert found[te.LayerNormLinear] == 2 * layers  # Of attention and of the MLP, their norms in.
    assert found[te.Linear] == 2 * layers
    assert found[te.DotProductAttention] == layers
    assert found[te.RMSNorm] == 1


def test_shared_prompts_of_engine_layers_are_those_asked_for(build) -> None:
    assert not build("--algorithm.shared_prompts=auto").shared_prompts
    assert build("--algorithm.shared_prompts=always").shared_prompts
    with pytest.raises(InputError, match="packed sequences take 16-bit numbers"):
        build("--algorithm.shared_prompts=always", "--precision.params_dtype=fp32")


def test_policy_of_gemma_has_engine_layers_but_for_attention(tmp_path) -> None:
    path = tiny.write_families(tmp_path, ["gemma3"])["gemma3"]
    recipe = load_recipe(None, (f"--model.path={path}", "--precision.params_dtype=fp32"))
    initialize(recipe.parallel, 0)
    policy = build_policy(recipe, trainable=False)
    for layer in policy.modules[0].decoder.layers:
        attention, mlp = layer.self_attention, layer.mlp
        for fused in (attention.linear_qkv, mlp.linear_fc1):
            assert isinstance(fused, te.LayerNormLinear)
        for linear in (attention.linear_proj, mlp.linear_fc2):
            assert isinstance(linear, te.Linear)
            assert isinstance(linear.post_layernorm, te.RMSNorm)
        for norm in (attention.q_layernorm, attention.k_layernorm):
            assert isinstance(norm, te.RMSNorm)
        # Of torch, as in every model with a window.
        assert isinstance(attention.core_attention, SdpaCoreAttention)
    assert isinstance(policy.modules[0].decoder.final_layernorm, te.RMSNorm)


def test_optimizer_is_that_of_the_engine_without_repair(build) -> None:
    (part,) = build().optimizer.chained_optimizers
    assert isinstance(part.optimizer, te.optimizers.FusedAdam)
    assert not hasattr(DistributedOptimizer.load_state_dict, "__wrapped__")


def test_precision_aware_optimizer_knows_the_fp8_recipe(build) -> None:
    aware = "--optimizer.megatron.use_precision_aware_optimizer=true"
    asked = {
        settings: build(aware, *settings).optimizer.chained_optimizers[0].config
        for settings in (
            (),
            ("--precision.fp8=hybrid", "--precision.fp8_recipe=delayed"),
            ("--precision.fp8=hybrid", "--precision.fp8_recipe=tensorwise"),
        )
    }
    assert [config.fp8_recipe for config in asked.values()] == [None, "delayed", "tensorwise"]
    reads_decoupled_gradients = [
        config.use_precision_aware_optimizer_no_fp8_or_ds_fp8 for config in asked.values()
    ]
    assert reads_decoupled_gradients == [True, True, False]


def fuse(policy: Policy, *, fused: bool) -> int:
    """Turns fused gradients on or off; returns how many matrices have them to turn."""
    parts = [
        part for part in policy.modules[0].modules() if hasattr(part, "fuse_wgrad_accumulation")
    ]
    for part in parts:
        part.fuse_wgrad_accumulation = fused
    return len(parts)


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 0.0), ("bf16", 5e-3)])
def test_fused_products_add_gradients_to_the_buffers(build, dtype: str, tolerance: float) -> None:
    """In fp32 exactly what two steps give; in bf16 without their rounding, 2^-9 of a gradient."""
    sequences = [TokenSequence((3, 4, 5), (6, 7, 8, 9)), TokenSequence((9, 8), (7, 6, 5, 4))]

    def loss(log_probs: torch.Tensor, _: torch.Tensor, batch: MicroBatch) -> tuple:
        return -log_probs.sum(), None

    policy = build(f"--precision.params_dtype={dtype}", "--optimizer.lr=0")
    assert all(
        part.fuse_wgrad_accumulation
        for part in policy.modules[0].modules()
        if hasattr(part, "fuse_wgrad_accumulation")
    )
    batches = policy.micro_batches(TokenBatch.from_sequences(sequences), 1)
    gradients = {}
    for fused in (True, False):
        assert fuse(policy, fused=fused) == 4 * policy.config.num_layers
        policy.update(batches, loss)
        (buffer,) = policy.chunks[0].buffers
        gradients[fused] = buffer.grad_data.clone()
    assert gradients[False].abs().max() > 0.01
    largest = gradients[False].abs().max()
    assert (gradients[True] - gradients[False]).abs().max() <= tolerance * largest


@pytest.mark.parametrize("packed", ["false", "true"], ids=["padded", "packed"])
def test_rotation_is_the_engines_kernel(build, packed: str) -> None:
    sequences = [TokenSequence((3, 4, 5), (6, 7, 8, 9)), TokenSequence((9, 8), (7, 6, 5))]
    scores = {}
    for fused in (True, False):
        settings = [] if fused else ["--model.megatron.apply_rope_fusion=false"]
        policy = build(
            "--precision.params_dtype=fp32", f"--algorithm.sequence_packing={packed}", *settings
        )
        rotation.CALLS.clear()
        (found,) = policy.score(policy.micro_batches(TokenBatch.from_sequences(sequences), 2))
        # Queries and keys of each layer.
        assert len(rotation.CALLS) == (2 * policy.config.num_layers if fused else 0)
        scores[fused] = found.log_probs
    torch.testing.assert_close(scores[True], scores[False], rtol=0, atol=1e-5)


def test_compiled_functions_without_an_answer_raise() -> None:
    with pytest.raises(NotImplementedError, match=r"transformer_engine_torch\.swiglu"):
        transformer_engine_torch.swiglu()
