"""Model families: one file holds all that is known of each.

`family_of` and `find_family` bind a family to one model's configuration; everything else asks what
they return. A new family is a subclass of `Family` and an entry of `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from megatron_resrl.errors import InputError
from megatron_resrl.policy.families.family import Family
from megatron_resrl.policy.families.gemma import Gemma3
from megatron_resrl.policy.families.llama import Llama
from megatron_resrl.policy.families.mistral import Mistral, Mixtral
from megatron_resrl.policy.families.qwen import Qwen2, Qwen3, Qwen3Moe

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FAMILIES: tuple[type[Family], ...] = (
    Llama,
    Qwen2,
    Qwen3,
    Qwen3Moe,
    Mistral,
    Mixtral,
    Gemma3,
)

SUPPORTED_ARCHITECTURES = tuple(family.architecture for family in FAMILIES)


def find_family(config: Mapping[str, Any]) -> Family | None:
    """The family of a config.json, bound to it; None: it is of none of them.

    `architectures` decides; without it, `model_type`.
    """
    named = config.get("architectures")
    for family in FAMILIES:
        known = named[0] == family.architecture if named else False
        if known or (not named and config.get("model_type") == family.model_type):
            return family(config)
    return None


def family_of(hf_config: PretrainedConfig) -> Family:
    """The family of a transformers configuration, bound to its values and defaults.

    Raises:
        InputError: The architecture is not supported.
    """
    family = find_family(hf_config.to_dict())
    if family is None:
        found = (hf_config.architectures or [hf_config.model_type])[0]
        raise InputError(
            f"{found} is not supported; supported are {', '.join(SUPPORTED_ARCHITECTURES)}"
        )
    return family
