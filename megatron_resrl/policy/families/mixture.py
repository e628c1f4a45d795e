"""Families whose MLPs are mixtures of experts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from megatron_resrl.policy.families.family import Family, Shape


class Mixture(Family):
    """Sparse layers route each token to a few experts of one size; others are dense.

    Routing is transformers': a softmax over all experts in fp32 whose k largest are kept, and
    divided by their sum if `divides_routing`, which is the softmax over the k largest logits.
    """

    router_name: ClassVar[str]
    """Hugging Face tensor of a layer's router."""
    expert_size_field: ClassVar[str] = "moe_intermediate_size"
    """Where config.json has the inner size of an expert."""
    division_reason: ClassVar[str] = "norm_topk_prob"
    """What `divides_routing` comes from, for messages."""

    @property
    def experts(self) -> int | None:
        """Experts of each sparse layer, by either spelling of config.json."""
        return self.config.get("num_experts") or self.config.get("num_local_experts")

    @property
    def expert_size(self) -> int | None:
        """Inner size of an expert."""
        return self.config.get(self.expert_size_field)

    @property
    def divides_routing(self) -> bool:
        """Whether the weights of a token's experts are divided by their sum."""
        return bool(self.config.get("norm_topk_prob"))

    @property
    def sparse_layers(self) -> list[bool]:
        """Whether each layer has experts."""
        return [True] * self.config["num_hidden_layers"]

    def indivisible(self, ranks: int, *, experts: bool = False) -> Iterator[tuple[str, str]]:
        """See `Family`."""
        yield from super().indivisible(ranks)
        if experts and self.expert_size is not None and self.expert_size % ranks:
            yield f"a {self.expert_size_field} of {self.expert_size}", f"divides {self.expert_size}"

    def transformer_fields(self) -> dict[str, Any]:
        """See `Family`.

        No token is dropped and no balancing loss is added: a token's output depends on that token
        alone, and the loss is the policy's.
        """
        sparse = self.sparse_layers
        return super().transformer_fields() | {
            "num_moe_experts": self.experts,
            # A list makes megatron-core store every layer by itself, even if all are alike.
            "moe_layer_freq": 1 if all(sparse) else [int(layer) for layer in sparse],
            "moe_ffn_hidden_size": self.expert_size,
            "moe_router_topk": self.config["num_experts_per_tok"],
            "moe_router_score_function": "softmax",
            "moe_router_pre_softmax": not self.divides_routing,
            "moe_router_dtype": "fp32",
            "moe_router_load_balancing_type": "none",
        }

    def _mlp(self, layer: int) -> Iterator[tuple[str, Shape]]:
        if not self.sparse_layers[layer]:
            yield from super()._mlp(layer)
            return
        hidden, inner = self.config["hidden_size"], self.config[self.expert_size_field]
        count = self.config.get("num_experts") or self.config["num_local_experts"]
        yield self.router_name, (count, hidden)
        (down,) = self.expert_names["linear_fc2"]
        for number in range(count):
            for name in self.expert_names["linear_fc1"]:
                yield name.format(expert=number), (inner, hidden)
            yield down.format(expert=number), (hidden, inner)
