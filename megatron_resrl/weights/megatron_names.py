"""The keys under which torch_dist checkpoints store one and the same parameter.

The name used here is that of megatron-core's own layers, e.g.
`decoder.layers.3.input_layernorm.weight`. Transformer Engine's layers call the same parameter
`decoder.layers.3.self_attention.linear_qkv.layer_norm_weight`.
"""

from __future__ import annotations

import re

_FUSED = (
    ("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"),
    ("mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight"),
)
"""Names of norms that are fused with the matrix behind them, and of the same norms alone."""
_NOT_WEIGHTS = re.compile(
    r"^(chained_\d+\.)?(optimizer|opt_param_scheduler|rng_state|rerun_state)|_extra_state"
)
"""megatron-core numbers optimizers where experts have one of their own."""


def is_weight(key: str) -> bool:
    """Whether a stored tensor is a parameter of the model, and not of the optimizer."""
    return not _NOT_WEIGHTS.search(key)


def spellings(key: str) -> list[str]:
    """The key, and the one that a layer with the other kind of norm stores the parameter under."""
    found = [key]
    for fused, separate in _FUSED:
        for old, new in ((fused, separate), (separate, fused)):
            if key.endswith("." + old):
                found.append(key.removesuffix(old) + new)
    return found


def stored_keys(name: str, key: str) -> list[str]:
    """Keys of torch_dist checkpoints that may hold a parameter, likeliest first.

    Args:
        name: Of megatron-core's own layers.
        key: As the policy stores it.

    Returns:
        That key, those of layers whose norms are not fused, and of those stored one by one: with
        the layer's number in the name instead of an axis, and likewise the expert's.
    """
    keys = spellings(key)
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
