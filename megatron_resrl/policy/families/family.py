"""What is asked of a model family. The answers come from config.json alone, without torch.

A family of the usual kind (Llama's: RMSNorm before attention and MLP, rotary embedding, gated MLP)
overrides only what differs; see the files beside this one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeAlias

Names: TypeAlias = dict[str, tuple[str, ...]]
Shape: TypeAlias = tuple[int, ...]

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_GROUPED_EXPERT = re.compile(r"mlp\.experts\.(linear_fc\d)\.weight(\d+)")
_FUSED_NORMS = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}
"""Transformer Engine's names of norms that are fused with the matrix behind them."""


class Unsupported(NamedTuple):
    """An option of config.json that would change the numbers."""

    problem: str
    fix: str


@dataclass(frozen=True)
class Family:
    """A model of a supported family.

    Missing sizes raise `KeyError`: config.json leaves them to transformers' defaults, which a
    configuration's `to_dict()` has.
    """

    config: Mapping[str, Any]
    """config.json, or a transformers configuration's `to_dict()`."""

    architecture: ClassVar[str]
    """Its name in config.json's `architectures`."""
    model_type: ClassVar[str]
    activation: ClassVar[str] = "silu"
    """transformers' name of the function that gates the MLP."""
    activation_field: ClassVar[str] = "hidden_act"
    """Where config.json names it."""
    qkv_bias: ClassVar[bool] = False
    """Whether the projections to queries, keys and values have biases."""
    qk_norm: ClassVar[bool] = False
    """Whether queries and keys are normalised per head."""
    zero_centered_norms: ClassVar[bool] = False
    """Whether norms multiply by 1 + weight, with weights stored around 0."""
    norms_after_blocks: ClassVar[bool] = False
    """Whether the outputs of attention and MLP are normalised before the residual is added."""
    rope_types: ClassVar[tuple[str, ...]] = ("default", "linear", "llama3", "yarn")
    """Kinds of rotary embedding; none whose frequencies depend on the length of the sequence."""
    fp8: ClassVar[bool] = True
    """Whether products in FP8 are supported."""
    names: ClassVar[Names] = {
        "input_layernorm.weight": ("input_layernorm.weight",),
        "pre_mlp_layernorm.weight": ("post_attention_layernorm.weight",),
        "self_attention.linear_qkv.weight": (
            "self_attn.q_proj.weight",
            "self_attn.k_proj.weight",
            "self_attn.v_proj.weight",
        ),
        "self_attention.linear_qkv.bias": (
            "self_attn.q_proj.bias",
            "self_attn.k_proj.bias",
            "self_attn.v_proj.bias",
        ),
        "self_attention.q_layernorm.weight": ("self_attn.q_norm.weight",),
        "self_attention.k_layernorm.weight": ("self_attn.k_norm.weight",),
        "self_attention.linear_proj.weight": ("self_attn.o_proj.weight",),
        "mlp.linear_fc1.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
        "mlp.linear_fc2.weight": ("mlp.down_proj.weight",),
    }
    """Parameter of a layer in megatron-core -> Hugging Face tensors that it is made of."""
    expert_names: ClassVar[Names] = {}
    """Likewise of one expert, whose number replaces `{expert}`."""

    def problems(self) -> Iterator[Unsupported]:
        """Options of this config.json that are not supported."""
        config, fix = self.config, "use a model without it"
        activation = config.get(self.activation_field, self.activation)
        if activation != self.activation:
            yield Unsupported(
                f"its {self.activation_field} is {activation!r}",
                f"only {self.activation} is supported",
            )
        kinds = set(config.get("layer_types") or ())
        if unknown := kinds - {"full_attention", "sliding_attention"}:
            yield Unsupported(f"its layer_types name {min(unknown)}", fix)
        elif "sliding_attention" in kinds and self.window is None:
            yield Unsupported(
                "its layer_types name sliding-window attention, but no sliding_window is in use",
                fix,
            )
        if config.get("attention_bias") and not self.qkv_bias:
            yield Unsupported("its attention_bias is true", fix)
        if config.get("mlp_bias"):
            yield Unsupported("its mlp_bias is true", fix)
        if config.get("quantization_config"):
            problem = "its weights are quantized (quantization_config)"
            yield Unsupported(problem, "use the unquantized weights")
        for settings in self.rotary.values():
            yield from self._rope_problems(settings)

    def _rope_problems(self, settings: Mapping[str, Any]) -> Iterator[Unsupported]:
        rope_type = settings["rope_type"]
        if rope_type not in self.rope_types:
            yield Unsupported(
                f"its rope_type is {rope_type!r}", f"supported are {', '.join(self.rope_types)}"
            )
        part = settings.get("partial_rotary_factor", self.config.get("partial_rotary_factor"))
        if part not in (None, 1):
            yield Unsupported(f"its partial_rotary_factor is {part}", "use a model without it")

    @property
    def head_size(self) -> int:
        """Size of one attention head."""
        explicit = self.config.get("head_dim")
        return explicit or self.config["hidden_size"] // self.config["num_attention_heads"]

    @property
    def query_groups(self) -> int:
        """Number of key-value heads."""
        return self.config["num_key_value_heads"]

    @property
    def tied(self) -> bool:
        """Whether the output matrix is the embedding."""
        return self.config.get("tie_word_embeddings", False)

    @property
    def window(self) -> int | None:
        """Tokens that a layer with a window attends to, itself included; None: no layer has one."""
        return None

    @property
    def windowed_layers(self) -> list[bool]:
        """Whether each layer attends within `window` only."""
        return [self.window is not None] * self.config["num_hidden_layers"]

    @property
    def rotary(self) -> dict[str | None, dict[str, Any]]:
        """Settings of the rotary embeddings: `rope_type`, `rope_theta`, and the type's own.

        By transformers' name of the kind of layer; None: of all layers.
        """
        return {None: rope_settings(self.config)}

    @property
    def embedding_scale(self) -> float | None:
        """What embeddings are multiplied by; None: by nothing."""
        return None

    @property
    def experts(self) -> int | None:
        """Experts of each sparse layer; None: the model is dense."""
        return None

    def indivisible(self, ranks: int, *, experts: bool = False) -> Iterator[tuple[str, str]]:
        """What tensor-parallel ranks cannot share evenly.

        Args:
            ranks: Their number, at least 1.
            experts: Whether each expert is split over as many ranks, too.

        Yields:
            What the model has, and what a number of ranks must do to fit.
        """
        heads = self.config.get("num_attention_heads")
        groups = self.config.get("num_key_value_heads") or heads
        inner = self.config.get("intermediate_size")
        if heads is not None and heads % ranks:
            yield f"{heads} attention heads", f"divides {heads}"
        # megatron-core copies a key-value head to several ranks when there are fewer than ranks.
        if groups is not None and groups % ranks and ranks % groups:
            yield f"{groups} key-value heads", f"divides {groups} or is a multiple of it"
        if inner is not None and inner % ranks:
            yield f"an intermediate_size of {inner}", f"divides {inner}"

    def transformer_fields(self) -> dict[str, Any]:
        """Fields of megatron-core's `TransformerConfig` that describe the model.

        The activation is a function and comes from `activation`.
        """
        fields: dict[str, Any] = {
            "num_layers": self.config["num_hidden_layers"],
            "hidden_size": self.config["hidden_size"],
            "ffn_hidden_size": self.config["intermediate_size"],
            "num_attention_heads": self.config["num_attention_heads"],
            "num_query_groups": self.query_groups,
            "kv_channels": self.head_size,
            "layernorm_epsilon": self.config["rms_norm_eps"],
            "normalization": "RMSNorm",
            "layernorm_zero_centered_gamma": self.zero_centered_norms,
            "gated_linear_unit": True,
            "add_bias_linear": False,
            "add_qkv_bias": self.qkv_bias,
            "qk_layernorm": self.qk_norm,
        }
        if self.window is not None:
            # megatron-core counts the tokens before a query, transformers the query too.
            fields["window_size"] = (self.window - 1, 0)
            fields["window_attn_skip_freq"] = [int(layer) for layer in self.windowed_layers]
        return fields

    def hugging_face_names(self, parameter: str) -> list[str]:
        """Hugging Face tensors that a parameter of megatron-core is made of, in its order.

        Queries, keys and values are one parameter, and so are gate and up.

        Args:
            parameter: Name in the whole model, of megatron-core's or Transformer Engine's layers;
                experts by Transformer Engine's names (`mlp.experts.linear_fc1.weight3`).

        Raises:
            KeyError: The family has no such parameter.
        """
        layer = _LAYER.fullmatch(parameter)
        if layer is None:
            head = "model.embed_tokens.weight" if self.tied else "lm_head.weight"
            outside = {
                "embedding.word_embeddings.weight": "model.embed_tokens.weight",
                "decoder.final_layernorm.weight": "model.norm.weight",
                "output_layer.weight": head,
            }
            return [outside[parameter]]
        name = _FUSED_NORMS.get(layer[2], layer[2])
        expert = _GROUPED_EXPERT.fullmatch(name)
        if expert is None:
            return [f"model.layers.{layer[1]}.{part}" for part in self.names[name]]
        parts = self.expert_names[expert[1]]
        return [f"model.layers.{layer[1]}.{part.format(expert=expert[2])}" for part in parts]

    def tensors(self) -> dict[str, Shape]:
        """Name and shape of every tensor that files of the model hold, as transformers saves them.

        Raises:
            KeyError: A size is not in the configuration.
        """
        hidden = self.config["hidden_size"]
        embedding = (self.config["vocab_size"], hidden)
        tensors: dict[str, Shape] = {
            "model.embed_tokens.weight": embedding,
            "model.norm.weight": (hidden,),
        }
        if not self.tied:
            tensors["lm_head.weight"] = embedding
        for number in range(self.config["num_hidden_layers"]):
            for parts in (self._norms(), self._attention(), self._mlp(number)):
                tensors |= {f"model.layers.{number}.{name}": shape for name, shape in parts}
        return tensors

    def _norms(self) -> Iterator[tuple[str, Shape]]:
        hidden = self.config["hidden_size"]
        yield "input_layernorm.weight", (hidden,)
        yield "post_attention_layernorm.weight", (hidden,)

    def _attention(self) -> Iterator[tuple[str, Shape]]:
        hidden, size = self.config["hidden_size"], self.head_size
        queries, groups = self.config["num_attention_heads"] * size, self.query_groups * size
        for part, rows in (("q", queries), ("k", groups), ("v", groups)):
            yield f"self_attn.{part}_proj.weight", (rows, hidden)
            if self.qkv_bias:
                yield f"self_attn.{part}_proj.bias", (rows,)
        yield "self_attn.o_proj.weight", (hidden, queries)
        if self.qk_norm:
            yield "self_attn.q_norm.weight", (size,)
            yield "self_attn.k_norm.weight", (size,)

    def _mlp(self, layer: int) -> Iterator[tuple[str, Shape]]:
        hidden, inner = self.config["hidden_size"], self.config["intermediate_size"]
        yield "mlp.gate_proj.weight", (inner, hidden)
        yield "mlp.up_proj.weight", (inner, hidden)
        yield "mlp.down_proj.weight", (hidden, inner)


def rope_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The one rotary embedding of a model, as the newer or the older config.json spells it.

    Returns:
        `rope_type`, `rope_theta`, and the type's own fields.
    """
    settings = dict(config.get("rope_scaling") or {})
    settings |= config.get("rope_parameters") or {}
    settings["rope_type"] = settings.get("rope_type") or settings.pop("type", None) or "default"
    settings.setdefault("rope_theta", config.get("rope_theta") or 10000.0)
    return settings
