"""The sizes of a model that bytes and floating-point operations follow from."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_resrl.policy.families import Family
from megatron_resrl.policy.sizes import Parameters, count_parameters


@dataclass(frozen=True)
class ModelShape:
    """Of one model; from config.json alone."""

    layers: int
    hidden: int
    queries: int
    """Query heads x head size."""
    keys: int
    """Key-value heads x head size; values are as large."""
    key_heads: int
    inner: int
    """Width of a dense MLP."""
    vocabulary: int
    experts: int
    """Of a sparse layer; 0: the model is dense."""
    experts_per_token: int
    expert_inner: int
    """Width of one expert."""
    parameters: Parameters

    @classmethod
    def of(cls, family: Family) -> ModelShape:
        """The shape of a model.

        Raises:
            KeyError, TypeError: A size is not in its configuration.
        """
        config, fields = family.config, family.transformer_fields()
        experts = family.experts or 0
        return cls(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            queries=config["num_attention_heads"] * family.head_size,
            keys=family.query_groups * family.head_size,
            key_heads=family.query_groups,
            inner=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            experts=experts,
            experts_per_token=fields["moe_router_topk"] if experts else 0,
            expert_inner=fields["moe_ffn_hidden_size"] if experts else 0,
            parameters=count_parameters(family),
        )

    @property
    def sparse_share(self) -> float:
        """Of the layers, those with experts."""
        if not self.experts:
            return 0.0
        per_layer = 3 * self.hidden * self.expert_inner * self.experts
        return self.parameters.experts / (self.layers * per_layer)

    @property
    def active_inner(self) -> float:
        """Width of the MLP that one token goes through, averaged over layers."""
        sparse = self.experts_per_token * self.expert_inner
        return self.sparse_share * sparse + (1 - self.sparse_share) * self.inner

    @property
    def attention_weights(self) -> int:
        """Parameters of a layer's attention: queries, keys, values and output."""
        return self.hidden * (2 * self.queries + 2 * self.keys)

    @property
    def active_parameters(self) -> float:
        """Parameters that multiply one token, the output matrix included."""
        layer = self.attention_weights + 3 * self.hidden * self.active_inner
        return self.layers * layer + self.vocabulary * self.hidden

    def layer_flops(self, row: float) -> float:
        """Floating-point operations of one token's way through one layer, forward.

        2 for each weight, and 4 x query width for each token that is attended to, on average half
        of the row.

        Args:
            row: Tokens of the sequence.
        """
        weights = self.attention_weights + 3 * self.hidden * self.active_inner
        return 2 * weights + 4 * self.queries * row / 2

    def training_flops(self, row: float) -> float:
        """Floating-point operations of training on one token, which is a target.

        Layers and output matrix, forward and twice as much backward. What recomputation repeats
        does not count: these are the model's operations, of which MFU is made (PaLM, arXiv
        2204.02311, appendix B; there every token attends to the whole row).

        Args:
            row: Tokens of the sequence.
        """
        head = 2 * self.hidden * self.vocabulary
        return 3 * (self.layers * self.layer_flops(row) + head)

    @property
    def cache_per_token(self) -> int:
        """Bytes of a token's keys and values in all layers, in 16 bits."""
        return 2 * 2 * self.keys * self.layers
