"""Arguments of Megatron-LM's GPT models, and config.json: each from the other.

A checkpoint of Megatron-LM holds the arguments that its model was built from. Their names and
defaults are those of megatron/training/arguments.py, which comes with megatron-core 0.11 to 0.19.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from megatron_resrl.policy.families.family import Family, Unsupported
from megatron_resrl.policy.families.llama import Llama
from megatron_resrl.policy.families.mistral import Mistral, Mixtral
from megatron_resrl.policy.families.mixture import Mixture
from megatron_resrl.policy.families.qwen import Qwen2, Qwen3, Qwen3Moe

_SIZES = (
    *("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads"),
    "max_position_embeddings",
)
_ACCEPTED: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("rope",),
    "rotary_percent": (1.0,),
    "rotary_seq_len_interpolation_factor": (None, 1),
    "normalization": ("RMSNorm",),
    "swiglu": (True,),
    "add_bias_linear": (False,),
    "softmax_type": ("vanilla",),
    "softmax_scale": (None,),
    "moe_router_score_function": ("softmax",),
    "moe_router_topk_scaling_factor": (None, 1.0),
}
"""Argument -> the values with which a model computes what the families compute."""
_DEFAULTS = {
    "position_embedding_type": "learned_absolute",
    "normalization": "LayerNorm",
    "swiglu": False,
    "add_bias_linear": True,
}
"""Megatron-LM's defaults, where `_ACCEPTED` does not begin with them."""
_LEFT_OUT = (
    *("multi_latent_attention", "mtp_num_layers", "spec", "use_legacy_models"),
    *("apply_layernorm_1p", "layernorm_zero_centered_gamma", "rotary_interleaved", "no_rope_freq"),
    *("squared_relu", "quick_geglu", "glu_linear_offset", "activation_func_clamp_value"),
    *("is_hybrid_model", "hybrid_override_pattern", "hybrid_layer_pattern"),
    *("hybrid_attention_ratio", "hybrid_mlp_ratio", "mamba_num_heads"),
    *("heterogeneous_layers_config_path", "heterogeneous_layers_config_encoded_json"),
    *("experimental_attention_variant", "linear_attention_type", "linear_attention_freq"),
    *("attention_output_gate", "qk_l2_norm", "apply_residual_connection_post_layernorm", "use_mup"),
    *("moe_shared_expert_intermediate_size", "moe_latent_size", "moe_router_enable_expert_bias"),
    *("moe_router_num_groups", "moe_router_group_topk", "moe_apply_probs_on_input"),
    "moe_mlp_glu_interleave_size",
)
"""Arguments that make a model of another kind, unless they are absent, false or zero."""
_SAME_NAMES = (
    *("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups"),
    *("kv_channels", "normalization", "layernorm_epsilon", "layernorm_zero_centered_gamma"),
    *("add_bias_linear", "add_qkv_bias", "qk_layernorm", "window_size", "window_attn_skip_freq"),
    *("moe_ffn_hidden_size", "moe_router_topk", "moe_router_score_function"),
    *("moe_router_pre_softmax", "moe_router_dtype", "moe_router_load_balancing_type"),
)
"""Arguments that are called like fields of megatron-core."""
_OF_FAMILIES = (
    *("qk_layernorm", "add_qkv_bias", "num_experts", "moe_router_pre_softmax", "moe_layer_freq"),
    *("window_size", "window_attn_skip_freq"),
)
"""Arguments in which families differ."""
_NOT_SET: tuple[Any, ...] = (None, False, 0, "", [], ())
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""What `use_rope_scaling` does. GPT models of Megatron-LM ignore `rope_scaling_factor`."""
_DTYPES = ("float32", "float16", "bfloat16")


def argument_problems(arguments: Mapping[str, Any]) -> Iterator[Unsupported]:
    """Arguments of a model that no supported family can have.

    Args:
        arguments: Of Megatron-LM, as its checkpoint holds them.
    """
    for name in _SIZES:
        if not isinstance(arguments.get(name), int):
            yield _problem(name, arguments.get(name), "a GPT model has a number there")
            return
    for name in _LEFT_OUT:
        if arguments.get(name) not in _NOT_SET:
            yield _problem(name, arguments[name], "only models without it are supported")
    for name, accepted in _ACCEPTED.items():
        value = _value(arguments, name)
        if value not in accepted:
            yield _problem(name, value, f"supported is {' or '.join(map(repr, accepted))}")
    factor = arguments.get("rope_scaling_factor", _LLAMA3_ROPE["factor"])
    if arguments.get("use_rope_scaling") and factor != _LLAMA3_ROPE["factor"]:
        fix = f"supported is {_LLAMA3_ROPE['factor']}, with which Megatron-LM's GPT models compute"
        yield _problem("rope_scaling_factor", factor, fix)
    window = arguments.get("window_size")
    if window and (len(window) != 2 or window[0] < 0 or window[1] != 0):
        yield _problem("window_size", window, "supported is (tokens before a token, 0)")
    balancing = arguments.get("moe_router_load_balancing_type")
    if balancing and "sinkhorn" in (balancing if isinstance(balancing, list) else [balancing]):
        fix = "supported are kinds that route by a softmax"
        yield _problem("moe_router_load_balancing_type", balancing, fix)
    if _family_of(arguments) is None:
        found = (f"{name} {arguments[name]!r}" for name in _OF_FAMILIES if arguments.get(name))
        yield Unsupported(
            f"no supported family has its arguments {', '.join(found)} together",
            "docs/checkpoints.md lists the combinations that one has",
        )


def _problem(name: str, value: Any, fix: str) -> Unsupported:
    return Unsupported(f"its argument {name} is {value!r}", fix)


def _value(arguments: Mapping[str, Any], name: str) -> Any:
    """The value of an argument of `_ACCEPTED`, also where an older argument says it."""
    if name == "position_embedding_type" and arguments.get("use_rotary_position_embeddings"):
        return "rope"
    if name == "add_bias_linear" and arguments.get("disable_bias_linear"):
        return False
    return arguments.get(name, _DEFAULTS.get(name, _ACCEPTED[name][0]))


def _family_of(arguments: Mapping[str, Any]) -> type[Family] | None:
    """The family whose layers have these parameters, experts and windows; None: there is none."""
    windowed, sparse = _windowed_layers(arguments), _sparse_layers(arguments)
    kind = (bool(arguments.get("qk_layernorm")), bool(arguments.get("add_qkv_bias")))
    if not any(sparse):
        if kind == (False, False) and any(windowed):
            return Mistral if all(windowed) else None
        return {(False, False): Llama, (False, True): Qwen2, (True, False): Qwen3}.get(kind)
    if any(windowed) and not all(windowed):
        return None
    if kind == (True, False):
        return Qwen3Moe
    divides = not arguments.get("moe_router_pre_softmax")
    return Mixtral if kind == (False, False) and all(sparse) and divides else None


def _windowed_layers(arguments: Mapping[str, Any]) -> list[bool]:
    """Whether each layer has an attention window, by megatron-core's rule."""
    layers, skipped = arguments["num_layers"], arguments.get("window_attn_skip_freq")
    if not arguments.get("window_size"):
        return [False] * layers
    if isinstance(skipped, int):
        return [number % skipped != 0 for number in range(1, layers + 1)]
    return [True] * layers if skipped is None else [bool(windowed) for windowed in skipped]


def _sparse_layers(arguments: Mapping[str, Any]) -> list[bool]:
    """Whether each layer has experts, by megatron-core's rule."""
    layers, frequency = arguments["num_layers"], arguments.get("moe_layer_freq") or 1
    if not arguments.get("num_experts"):
        return [False] * layers
    if isinstance(frequency, int):
        return [number % frequency == 0 for number in range(layers)]
    return [bool(sparse) for sparse in frequency]


def config_from_arguments(
    arguments: Mapping[str, Any], vocab_size: int, special_tokens: Mapping[str, int | None]
) -> dict[str, Any]:
    """The config.json of a model of Megatron-LM, in the spelling that all versions read.

    Args:
        arguments: Without `argument_problems`.
        vocab_size: Rows of the embedding without padding.
        special_tokens: `bos_token_id` and the like, which Megatron-LM leaves to the tokenizer.
    """
    family = _family_of(arguments)
    if family is None:
        raise ValueError("arguments of no family")
    heads, hidden = arguments["num_attention_heads"], arguments["hidden_size"]
    # Without grouped queries Megatron-LM writes an unused number of groups.
    grouped = arguments.get("group_query_attention")
    config = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": arguments["ffn_hidden_size"],
        "num_hidden_layers": arguments["num_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": arguments["num_query_groups"] if grouped else heads,
        "head_dim": arguments.get("kv_channels") or hidden // heads,
        "hidden_act": family.activation,
        "rms_norm_eps": arguments.get("layernorm_epsilon", arguments.get("norm_epsilon", 1e-5)),
        "rope_theta": float(arguments.get("rotary_base", 10000)),
        "rope_scaling": dict(_LLAMA3_ROPE) if arguments.get("use_rope_scaling") else None,
        "max_position_embeddings": arguments["max_position_embeddings"],
        "tie_word_embeddings": not arguments.get("untie_embeddings_and_output_weights", False),
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
        **special_tokens,
    }
    dtype = str(arguments.get("params_dtype")).removeprefix("torch.")
    if dtype in _DTYPES:
        config["torch_dtype"] = dtype
    config |= _window_fields(family, arguments)
    return config | (_expert_fields(family, arguments) if issubclass(family, Mixture) else {})


def _window_fields(family: type[Family], arguments: Mapping[str, Any]) -> dict[str, Any]:
    windowed = _windowed_layers(arguments)
    # megatron-core counts the tokens before a query, transformers the query too.
    size = arguments["window_size"][0] + 1 if any(windowed) else None
    if family in (Mistral, Mixtral):
        return {"sliding_window": size}
    if family is Llama or size is None:
        return {}
    fields = {"use_sliding_window": True, "sliding_window": size}
    if family is not Qwen3Moe:
        kinds = ("full_attention", "sliding_attention")
        fields["layer_types"] = [kinds[each] for each in windowed]
    return fields


def _expert_fields(family: type[Mixture], arguments: Mapping[str, Any]) -> dict[str, Any]:
    size = arguments.get("moe_ffn_hidden_size") or arguments["ffn_hidden_size"]
    fields = {
        family.expert_size_field: size,
        "num_experts_per_tok": arguments.get("moe_router_topk", 2),
    }
    if family is Mixtral:
        return fields | {"num_local_experts": arguments["num_experts"]}
    dense = [number for number, sparse in enumerate(_sparse_layers(arguments)) if not sparse]
    return fields | {
        "num_experts": arguments["num_experts"],
        "norm_topk_prob": not arguments.get("moe_router_pre_softmax", False),
        "decoder_sparse_step": 1,
        "mlp_only_layers": dense,
    }


def arguments_from_config(family: Family) -> dict[str, Any]:
    """The arguments with which Megatron-LM builds a model without `export_problems`.

    Those of the model alone, by the names that `load_args_from_checkpoint` of Megatron-LM reads.

    Args:
        family: Bound to a configuration with all sizes.
    """
    fields = family.transformer_fields()
    (rotary, *_) = family.rotary.values()
    base, heads = float(rotary["rope_theta"]), fields["num_attention_heads"]
    positions = family.config.get("max_position_embeddings")
    arguments = {name: fields[name] for name in _SAME_NAMES if fields.get(name) is not None}
    return arguments | {
        "encoder_num_layers": fields["num_layers"],
        "group_query_attention": fields["num_query_groups"] != heads,
        "max_position_embeddings": positions,
        "seq_length": positions,
        "position_embedding_type": "rope",
        "add_position_embedding": True,
        "use_rotary_position_embeddings": False,
        # Megatron-LM's command line takes whole numbers.
        "rotary_base": int(base) if base.is_integer() else base,
        "rotary_percent": 1.0,
        "rotary_interleaved": False,
        "use_rope_scaling": rotary["rope_type"] == "llama3",
        "rope_scaling_factor": _LLAMA3_ROPE["factor"],
        "norm_epsilon": fields["layernorm_epsilon"],
        "apply_layernorm_1p": fields["layernorm_zero_centered_gamma"],
        "swiglu": fields["gated_linear_unit"],
        "squared_relu": False,
        "untie_embeddings_and_output_weights": not family.tied,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "apply_query_key_layer_scaling": False,
        "num_experts": fields.get("num_moe_experts"),
        "moe_layer_freq": fields.get("moe_layer_freq", 1),
        "multi_latent_attention": False,
        "mtp_num_layers": None,
        "spec": None,
        "heterogeneous_layers_config_path": None,
    }


def export_problems(family: Family) -> Iterator[Unsupported]:
    """What of a model Megatron-LM's arguments cannot say.

    Args:
        family: Bound to a configuration with all sizes.
    """
    arguments = arguments_from_config(family)
    kind = _family_of(arguments)
    again = None
    if kind is not None:
        again = kind(config_from_arguments(arguments, family.config["vocab_size"], {}))
    for settings in family.rotary.values():
        said = {} if again is None else again.rotary[None]
        if any(settings.get(name) != value for name, value in said.items()):
            yield Unsupported(
                f"its rotary embedding is {settings}",
                "Megatron-LM's arguments say plain ones, and Llama 3.1's (llama3, factor 8)",
            )
    parts = (
        *("activation", "zero_centered_norms", "norms_after_blocks"),
        *("embedding_scale", "tied", "windowed_layers"),
    )
    if (
        again is None
        or any(getattr(again, part) != getattr(family, part) for part in parts)
        or again.transformer_fields() != family.transformer_fields()
    ):
        yield Unsupported(
            f"Megatron-LM has no arguments for a {family.architecture} of this kind",
            "leave --format out",
        )
