"""Mistral and Mixtral."""

from __future__ import annotations

from typing import ClassVar

from megatron_resrl.policy.families.family import Family, Names
from megatron_resrl.policy.families.mixture import Mixture


class Mistral(Family):
    """`MistralForCausalLM`: all layers have a window, unless `sliding_window` is null."""

    architecture = "MistralForCausalLM"
    model_type = "mistral"

    @property
    def window(self) -> int | None:
        """The window of all layers; transformers' 4096 where config.json says nothing."""
        return self.config.get("sliding_window", 4096)


class Mixtral(Mixture):
    """`MixtralForCausalLM`: every layer has experts, as large as dense layers elsewhere."""

    architecture = "MixtralForCausalLM"
    model_type = "mixtral"
    router_name = "block_sparse_moe.gate.weight"
    expert_size_field = "intermediate_size"
    division_reason = "as in every Mixtral"
    names: ClassVar[Names] = Mixture.names | {"mlp.router.weight": (router_name,)}
    expert_names: ClassVar[Names] = {
        "linear_fc1": (
            "block_sparse_moe.experts.{expert}.w1.weight",
            "block_sparse_moe.experts.{expert}.w3.weight",
        ),
        "linear_fc2": ("block_sparse_moe.experts.{expert}.w2.weight",),
    }

    @property
    def window(self) -> int | None:
        """The window of all layers."""
        return self.config.get("sliding_window")

    @property
    def divides_routing(self) -> bool:
        """Always."""
        return True
