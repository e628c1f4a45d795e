"""The product's policy is made of Transformer Engine's layers, and its optimizer is FusedAdam."""

from __future__ import annotations

from collections import Counter

import pytest
import transformer_engine.pytorch as te
import transformer_engine_torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer


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


def test_compiled_functions_without_an_answer_raise() -> None:
    with pytest.raises(NotImplementedError, match=r"transformer_engine_torch\.swiglu"):
        transformer_engine_torch.swiglu()
