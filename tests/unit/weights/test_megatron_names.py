"""Under which keys of a torch_dist checkpoint a parameter is looked for."""

from __future__ import annotations

import pytest

from megatron_resrl.weights.megatron_names import position, stored_keys

NORM = "decoder.layers.3.input_layernorm.weight"
FUSED, SEPARATE = "self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"
EXPERT = "decoder.layers.3.mlp.experts.local_experts.5.linear_fc1.weight"


@pytest.mark.parametrize("start", ["decoder.layers.", "decoder.layers.3."])
@pytest.mark.parametrize("own", [FUSED, SEPARATE])
def test_stored_keys_find_norms_of_any_layers(start: str, own: str) -> None:
    keys = stored_keys(NORM, start + own)
    assert keys[0] == start + own
    starts = ("decoder.layers.", "decoder.layers.3.")
    assert set(keys) == {first + name for first in starts for name in (FUSED, SEPARATE)}
    found = {key: position(NORM, key) for key in keys}
    assert found[f"decoder.layers.{FUSED}"] == found[f"decoder.layers.{SEPARATE}"] == (3,)
    assert found[f"decoder.layers.3.{FUSED}"] == found[f"decoder.layers.3.{SEPARATE}"] == ()


def test_stored_keys_find_experts_together_and_one_by_one() -> None:
    together = "decoder.layers.mlp.experts.experts.linear_fc1.weight"
    alone = "decoder.layers.3.mlp.experts.experts.5.linear_fc1.weight"
    keys = stored_keys(EXPERT, together)
    assert {together, alone} <= set(keys)
    assert position(EXPERT, together) == (3, 5)
    assert position(EXPERT, alone) == ()


def test_stored_keys_of_the_embedding_are_its_own() -> None:
    name = "embedding.word_embeddings.weight"
    assert stored_keys(name, name) == [name]
    assert position(name, name) == ()
