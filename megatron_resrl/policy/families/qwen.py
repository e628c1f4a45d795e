"""Qwen 2, 2.5 and 3, and Qwen 3's mixtures of experts."""

from __future__ import annotations

from typing import ClassVar

from megatron_resrl.policy.families.family import Family, Names
from megatron_resrl.policy.families.mixture import Mixture

_WINDOW = 4096
"""What transformers takes for `sliding_window` where config.json has none."""
_MAX_WINDOW_LAYERS = 28
"""Likewise; layers before this one have no window."""


class _Qwen(Family):
    """Dense models, whose upper layers may have a window."""

    @property
    def window(self) -> int | None:
        """The window, if `use_sliding_window` is true and a layer has one."""
        return _used_window(self) if any(self.windowed_layers) else None

    @property
    def windowed_layers(self) -> list[bool]:
        """As `layer_types` says, or else from layer `max_window_layers` on."""
        count = self.config.get("num_hidden_layers", 0)
        if _used_window(self) is None:
            return [False] * count
        if kinds := self.config.get("layer_types"):
            return [kind == "sliding_attention" for kind in kinds]
        first = self.config.get("max_window_layers", _MAX_WINDOW_LAYERS)
        return [layer >= first for layer in range(count)]


class Qwen2(_Qwen):
    """`Qwen2ForCausalLM`, Qwen 2.5 too: biases of queries, keys and values."""

    architecture = "Qwen2ForCausalLM"
    model_type = "qwen2"
    qkv_bias = True


class Qwen3(_Qwen):
    """`Qwen3ForCausalLM`: norms of queries and keys; heads of 128 where config.json has no size."""

    architecture = "Qwen3ForCausalLM"
    model_type = "qwen3"
    qk_norm = True

    @property
    def head_size(self) -> int:
        """Size of one attention head."""
        return super().head_size if "head_dim" in self.config else 128


class Qwen3Moe(Mixture):
    """`Qwen3MoeForCausalLM`: `mlp_only_layers` and `decoder_sparse_step` make layers dense."""

    architecture = "Qwen3MoeForCausalLM"
    model_type = "qwen3_moe"
    qk_norm = True
    router_name = "mlp.gate.weight"
    names: ClassVar[Names] = Mixture.names | {"mlp.router.weight": (router_name,)}
    expert_names: ClassVar[Names] = {
        "linear_fc1": (
            "mlp.experts.{expert}.gate_proj.weight",
            "mlp.experts.{expert}.up_proj.weight",
        ),
        "linear_fc2": ("mlp.experts.{expert}.down_proj.weight",),
    }

    @property
    def window(self) -> int | None:
        """The window of all layers, if `use_sliding_window` is true."""
        return _used_window(self)

    @property
    def sparse_layers(self) -> list[bool]:
        """Whether each layer has experts."""
        dense = self.config.get("mlp_only_layers") or ()
        step = self.config.get("decoder_sparse_step") or 1
        return [
            layer not in dense and not (layer + 1) % step
            for layer in range(self.config["num_hidden_layers"])
        ]


def _used_window(model: Family) -> int | None:
    config = model.config
    return config.get("sliding_window", _WINDOW) if config.get("use_sliding_window") else None
