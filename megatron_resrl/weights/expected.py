"""How the tensors of a model's files differ from those that its configuration asks for.

Nothing here needs torch: recipes are checked with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_resrl.policy.families.family import Family
from megatron_resrl.weights.files import StoredTensor

FLOATS = ("F64", "F32", "F16", "BF16")
"""safetensors' names of the types that weights may have."""

_QUANTIZATION = re.compile(
    r"(scales?(_inv|_2)?|qweight|qzeros|g_idx|zero_point|zeros|absmax|SCB|"
    r"quant_map|nested_absmax|nested_quant_map|weight_format|quant_state\..+)$"
)


@dataclass(frozen=True)
class Comparison:
    """What differs between a model's files and its configuration."""

    wrong: tuple[str, ...]
    """What makes it unusable, each in words that name the tensor."""
    unexpected: tuple[str, ...]
    """Names of tensors that the model does not have, in the order of the files."""
    remedy: str
    """For what is wrong."""


def compare(family: Family, stored: Mapping[str, StoredTensor]) -> Comparison:
    """Compares the headers of a model's files with its configuration.

    Args:
        family: The model's.
        stored: By name, as `stored_tensors` reads them.

    Raises:
        KeyError: A size is not in the configuration.
    """
    expected = family.tensors()
    wrong, quantized = [], []
    for name, shape in expected.items():
        found = stored.get(name)
        if found is None:
            wrong.append(_missing(name, family.config))
        elif found.dtype not in FLOATS:
            quantized.append(f"{name} is {found.dtype}")
        elif found.shape != shape:
            wrong.append(f"{name} is {found.shape} instead of {shape}")
    unexpected = tuple(name for name in stored if name not in expected)
    for name in unexpected:
        if _QUANTIZATION.search(name):
            quantized.append(f"{name} is part of a quantization")
    remedy = "fetch the model again, or correct config.json"
    if quantized:
        remedy = "use the model without quantization: in bfloat16, float16 or float32"
    return Comparison((*quantized, *wrong), unexpected, remedy)


def _missing(name: str, config: Mapping[str, Any]) -> str:
    if name != "lm_head.weight":
        return f"{name} is missing"
    said = "is false" if "tie_word_embeddings" in config else "is not there, which means false"
    return (
        f"{name} is missing, and tie_word_embeddings {said} in config.json (true would use the "
        "embedding for it)"
    )


def first_few(found: tuple[str, ...] | list[str], shown: int = 3) -> str:
    """The first few, and how many more there are."""
    more = f"; and {len(found) - shown} more" if len(found) > shown else ""
    return "; ".join(found[:shown]) + more
