"""The names that Megatron's versions and layers give to one and the same parameter.

The name used here is that of megatron-core's own layers, e.g.
`decoder.layers.3.input_layernorm.weight`. Transformer Engine's layers call that one
`decoder.layers.3.self_attention.linear_qkv.layer_norm_weight`, and Megatron-LM before
megatron-core `language_model.encoder.layers.3.input_norm.weight`.
"""

from __future__ import annotations

import re

_OLDER = (
    (r"^language_model\.(encoder|transformer)\.final_(layer)?norm\.", "decoder.final_layernorm."),
    (r"^language_model\.(encoder|transformer)\.", "decoder."),
    (r"^language_model\.embedding\.", "embedding."),
    (r"^language_model\.output_layer\.", "output_layer."),
    (r"\.input_norm\.", ".input_layernorm."),
    (r"\.(post_attention_norm|post_attention_layernorm)\.", ".pre_mlp_layernorm."),
    (r"\.self_attention\.query_key_value\.", ".self_attention.linear_qkv."),
    (r"\.(self_)?attention\.dense\.", ".self_attention.linear_proj."),
    (r"\.mlp\.dense_h_to_4h\.", ".mlp.linear_fc1."),
    (r"\.mlp\.dense_4h_to_h\.", ".mlp.linear_fc2."),
)
_FUSED = (
    (r"\.self_attention\.linear_qkv\.layer_norm_(\w+)$", r".input_layernorm.\1"),
    (r"\.mlp\.linear_fc1\.layer_norm_(\w+)$", r".pre_mlp_layernorm.\1"),
    (
        r"\.mlp\.experts\.(linear_fc\d)\.(weight|bias)(\d+)$",
        r".mlp.experts.local_experts.\3.\1.\2",
    ),
)


def own_name(name: str) -> str:
    """The name of megatron-core's own layers for a parameter of a model's state dict."""
    name = name.removeprefix("module.")
    for pattern, replacement in (*_OLDER, *_FUSED):
        name = re.sub(pattern, replacement, name)
    return name


def stored_keys(name: str, key: str) -> list[str]:
    """Keys of torch_dist checkpoints that may hold a parameter, likeliest first.

    Args:
        name: Of megatron-core's own layers.
        key: As the policy stores it.

    Returns:
        That key, those of layers whose norms are not fused, and of those stored one by one: with
        the layer's number in the name instead of an axis, and likewise the expert's.
    """
    keys = [key]
    for fused, separate in (
        ("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"),
        ("mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight"),
    ):
        for old, new in ((fused, separate), (separate, fused)):
            if key.endswith("." + old):
                keys.append(key.removesuffix(old) + new)
    layer = re.match(r"decoder\.layers\.(\d+)\.", name)
    if layer and key.startswith("decoder.layers."):
        start = f"decoder.layers.{layer[1]}."
        if not key.startswith(start):
            keys += [start + k.removeprefix("decoder.layers.") for k in keys]
        else:
            keys += ["decoder.layers." + k.removeprefix(start) for k in keys]
    expert = re.search(r"\.local_experts\.(\d+)\.", name)
    if expert:
        keys += [k.replace(".experts.experts.", f".experts.experts.{expert[1]}.") for k in keys]
        keys += [k.replace(".experts.experts.", ".experts.") for k in keys]
    return keys


def position(name: str, key: str) -> tuple[int, ...]:
    """Where a parameter lies along the axes of layers and experts that its stored tensor has.

    Args:
        name: Of megatron-core's own layers.
        key: Of `stored_keys`; a number in it takes the place of an axis.
    """
    place = []
    layer = re.match(r"decoder\.layers\.(\d+)\.", name)
    if layer and not re.match(r"decoder\.layers\.\d+\.", key):
        place.append(int(layer[1]))
    expert = re.search(r"\.local_experts\.(\d+)\.", name)
    if expert and not re.search(r"\.experts\.\d+\.", key):
        place.append(int(expert[1]))
    return tuple(place)
