"""Gemma 3, the text models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from megatron_resrl.policy.families.family import Family, Names, Shape, Unsupported

_FULL, _SLIDING = "full_attention", "sliding_attention"
_SLIDING_PATTERN = 6
"""Without `layer_types`, every sixth layer has full attention."""
_BASES = {_FULL: ("rope_theta", 1_000_000.0), _SLIDING: ("rope_local_base_freq", 10_000.0)}
"""Older config.json's name of a rotary embedding's base, and transformers' default."""


class Gemma3(Family):
    """`Gemma3ForCausalLM`.

    Most layers have a window and a rotary embedding of their own. Four norms per layer multiply by
    1 + weight: before attention and MLP, and behind both, before the residual is added. Embeddings
    are scaled and, if config.json says nothing, tied.
    """

    architecture = "Gemma3ForCausalLM"
    model_type = "gemma3_text"
    activation = "gelu_pytorch_tanh"
    activation_field = "hidden_activation"
    rope_types = ("default", "linear", "llama3")
    qk_norm = True
    zero_centered_norms = True
    norms_after_blocks = True
    fp8 = False
    names: ClassVar[Names] = Family.names | {
        "self_attention.linear_proj.post_layernorm.weight": ("post_attention_layernorm.weight",),
        "pre_mlp_layernorm.weight": ("pre_feedforward_layernorm.weight",),
        "mlp.linear_fc2.post_layernorm.weight": ("post_feedforward_layernorm.weight",),
    }

    def problems(self) -> Iterator[Unsupported]:
        """Also soft-caps, which no published Gemma 3 has, and attention to later tokens."""
        yield from super().problems()
        fix = "use a model without it"
        for field in ("attn_logit_softcapping", "final_logit_softcapping"):
            if self.config.get(field) is not None:
                yield Unsupported(f"its {field} is {self.config[field]}", fix)
        if self.config.get("use_bidirectional_attention"):
            yield Unsupported("its use_bidirectional_attention is true", fix)

    @property
    def head_size(self) -> int:
        """Size of one attention head."""
        return self.config.get("head_dim") or 256

    @property
    def tied(self) -> bool:
        """Whether the output matrix is the embedding."""
        return self.config.get("tie_word_embeddings", True)

    @property
    def window(self) -> int | None:
        """The window of sliding layers; None if there is none."""
        return self.config.get("sliding_window", 4096) if any(self._sliding_layers()) else None

    @property
    def windowed_layers(self) -> list[bool]:
        """Whether each layer attends within `window` only."""
        return self._sliding_layers() if self.window is not None else super().windowed_layers

    def _sliding_layers(self) -> list[bool]:
        if kinds := self.config.get("layer_types"):
            return [kind == _SLIDING for kind in kinds]
        pattern = self.config.get("sliding_window_pattern") or _SLIDING_PATTERN
        return [(layer + 1) % pattern != 0 for layer in range(self.config["num_hidden_layers"])]

    @property
    def rotary(self) -> dict[str | None, dict[str, Any]]:
        """Settings of the rotary embeddings of full and of sliding layers, in this order."""
        given = self.config.get("rope_parameters") or {}
        found: dict[str | None, dict[str, Any]] = {}
        for kind, (field, default) in _BASES.items():
            # Older files scale the embedding of full layers only.
            scaling = self.config.get("rope_scaling") if kind == _FULL else None
            settings = dict(given.get(kind) or scaling or {})
            settings["rope_type"] = settings.get("rope_type") or settings.pop("type", "default")
            settings.setdefault("rope_theta", self.config.get(field, default))
            found[kind] = settings
        return found

    @property
    def embedding_scale(self) -> float:
        """The root of the hidden size."""
        return self.config["hidden_size"] ** 0.5

    def transformer_fields(self) -> dict[str, Any]:
        """See `Family`; attention scores are scaled by a field of config.json's."""
        scale = self.config.get("query_pre_attn_scalar", 256) ** -0.5
        return super().transformer_fields() | {"softmax_scale": scale}

    def _norms(self) -> Iterator[tuple[str, Shape]]:
        yield from super()._norms()
        yield "pre_feedforward_layernorm.weight", (self.config["hidden_size"],)
        yield "post_feedforward_layernorm.weight", (self.config["hidden_size"],)
