"""Sums over the values of tensors, which servers and trainer compute alike; needs torch alone.

vLLM keeps q, k and v in one matrix, gate and up in another, all experts of a layer in two; it pads
the vocabulary with zeros, and its kernels may lay the elements out in another order. So the sum of
a tensor is over hashes of its elements, whatever their order, and that of a fused matrix is the sum
of its parts. A zero counts for nothing. One changed element always changes the sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

_CHUNK = 1 << 22
"""Elements hashed at once: 100 MB of temporary memory."""
_FACTORS = (-0x61C8864680B583EB, -0x4B47D0C5A1A6D4A3)
"""Odd numbers, so that multiplication modulo 2^64 loses nothing."""


def tensor_sum(tensor: torch.Tensor) -> int:
    """Sum modulo 2^64 (signed) of a one-to-one hash of every element's value.

    Values are compared as fp32, which holds every value of bf16 and fp16; -0 counts as 0.
    """
    total = 0
    for chunk in tensor.detach().flatten().split(_CHUNK):
        # Adding 0 makes 0 of -0.
        bits = (chunk.float() + 0.0).view(torch.int32).long()
        for factor in _FACTORS:
            bits = bits * factor
            # Shifted in zeros, not copies of the sign: else two inputs could give one output.
            bits = bits ^ ((bits >> 32) & 0xFFFFFFFF)
        total = wrapped(total + int(bits.sum()))
    return total


def wrapped(number: int) -> int:
    """`number` modulo 2^64, as a signed number."""
    return (number + 2**63) % 2**64 - 2**63


def fused_name(name: str, packed: Mapping[str, Sequence[str]]) -> str:
    """Name of the parameter of vLLM that holds a tensor, and the name under which it is summed.

    Args:
        name: Of a Hugging Face tensor or of a parameter of vLLM.
        packed: vLLM's `packed_modules_mapping`: fused module -> its parts.

    Returns:
        E.g. `model.layers.0.self_attn.qkv_proj.weight`; all matrices of a layer's experts are
        `model.layers.0.mlp.experts`.
    """
    layer, found, _ = name.partition(".experts.")
    if found:
        return f"{layer}.experts"
    fused = {part: whole for whole, parts in packed.items() for part in parts}
    return ".".join(fused.get(segment, segment) for segment in name.split("."))
