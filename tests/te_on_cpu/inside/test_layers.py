"""The product's policy is made of Transformer Engine's layers, and its optimizer is FusedAdam."""

from __future__ import annotations

import importlib
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
from megatron_resrl.platform.engine_python import kinds
from megatron_resrl.policy.attention import SdpaCoreAttention
from megatron_resrl.policy.batches import MicroBatch, TokenBatch, TokenSequence
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.worker import build_policy

CHOICE = "transformer_engine.pytorch.attention.dot_product_attention.dot_product_attention"
"""Module that keeps which attention was chosen."""


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


def test_shared_prompts_of_engine_layers_have_a_kernel(build, monkeypatch, caplog) -> None:
    assert build("--algorithm.shared_prompts=auto").shared_prompts
    assert not build(
        "--algorithm.shared_prompts=auto", "--precision.params_dtype=fp32"
    ).shared_prompts
    with pytest.raises(InputError, match="packed sequences take 16-bit numbers"):
        build("--algorithm.shared_prompts=always", "--precision.params_dtype=fp32")
    # What remains stores a score for each pair of a query and a key.
    nothing = kinds.NVTE_Fused_Attn_Backend.NVTE_No_Backend
    monkeypatch.setattr(transformer_engine_torch, "get_fused_attn_backend", lambda *args: nothing)
    caplog.set_level("INFO")
    assert not build("--algorithm.shared_prompts=auto").shared_prompts
    assert "would store the scores of all pairs of tokens" in caplog.text
    assert build("--algorithm.shared_prompts=always").shared_prompts


def test_shared_prompts_hold_in_the_engines_own_attention(build, monkeypatch) -> None:
    """No kernel is answered here: Transformer Engine's own Python makes masks, scores and sums."""
    nothing = kinds.NVTE_Fused_Attn_Backend.NVTE_No_Backend
    monkeypatch.setattr(transformer_engine_torch, "get_fused_attn_backend", lambda *args: nothing)
    module = importlib.import_module(CHOICE)
    backends = module._attention_backends | {"backend_selection_requires_update": True}
    monkeypatch.setattr(module, "_attention_backends", backends)
    sequences = [TokenSequence((3, 4, 5, 6, 7), tuple(range(9, 9 + n))) for n in (4, 1, 6)]
    sequences.append(TokenSequence((8, 3), (9, 9, 4)))
    found = {}
    for asked in ("never", "always"):
        policy = build(
            "--precision.params_dtype=fp32",
            "--algorithm.sequence_packing=true",
            f"--algorithm.shared_prompts={asked}",
        )
        (batch,) = policy.micro_batches(TokenBatch.from_sequences(sequences), 4)
        (scores,) = policy.score([batch])
        policy.update([batch], lambda log_probs, _, batch: (-log_probs.sum() / 14, None))
        assert not backends["use_fused_attention"]
        (buffer,) = policy.chunks[0].buffers
        found[asked] = batch.tokens.numel(), scores.log_probs, buffer.grad_data.clone()
    # The prompt's last token is fed for each response, because one of them has no other.
    assert found["never"][0] - found["always"][0] == 2 * 4
    for copies, shared in zip(found["never"][1:], found["always"][1:], strict=True):
        torch.testing.assert_close(shared, copies, rtol=0, atol=2e-6)


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
