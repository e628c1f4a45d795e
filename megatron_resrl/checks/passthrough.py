"""Checks the mappings that are handed to megatron-core's own config classes unchanged."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from megatron_resrl.checks.facts import RunFacts
from megatron_resrl.config.problems import Problem
from megatron_resrl.errors import closest

_DTYPE = dict.fromkeys(("params_dtype", "bf16", "fp16"), "precision.params_dtype")
_PARALLEL = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "virtual_pipeline_model_parallel_size",
    "context_parallel_size",
    "expert_model_parallel_size",
    "expert_tensor_parallel_size",
    "sequence_parallel",
)
_MODEL = (
    "attention_dropout",
    "hidden_dropout",
    "recompute_granularity",
    "recompute_method",
    "recompute_num_layers",
)
_PRECISION = (
    "fp8",
    "fp8_recipe",
    "num_layers_at_start_in_bf16",
    "num_layers_at_end_in_bf16",
)
_ADAM = ("lr", "min_lr", "weight_decay", "adam_beta1", "adam_beta2", "adam_eps", "clip_grad")

OWN_SETTINGS: dict[str, dict[str, str]] = {
    "model.megatron": {name: f"parallel.{name}" for name in _PARALLEL}
    | {name: f"model.{name}" for name in _MODEL}
    | {name: f"precision.{name}" for name in _PRECISION}
    | {"first_last_layers_bf16": "precision.num_layers_at_start_in_bf16"}
    | {"pipeline_dtype": "precision.params_dtype"}
    | {"deterministic_mode": "precision.deterministic"}
    | _DTYPE,
    "optimizer.megatron": {name: f"optimizer.{name}" for name in _ADAM}
    | {"use_distributed_optimizer": "parallel.use_distributed_optimizer"}
    | {"fp8_recipe": "precision.fp8_recipe"}
    | _DTYPE,
    "parallel.ddp": {"use_distributed_optimizer": "parallel.use_distributed_optimizer"},
}
"""Pass-through mapping -> fields that have a setting of their own, and that setting."""

FROM_THE_MODEL = (
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "kv_channels",
    "layernorm_epsilon",
    "normalization",
    "layernorm_zero_centered_gamma",
    "softmax_scale",
    "window_size",
    "window_attn_skip_freq",
    "activation_func",
    "gated_linear_unit",
    "add_bias_linear",
    "add_qkv_bias",
    "qk_layernorm",
    "num_moe_experts",
    "moe_ffn_hidden_size",
    "moe_layer_freq",
    "moe_latent_size",
    "moe_router_pre_softmax",
    "moe_router_score_function",
    "moe_router_topk",
    "moe_shared_expert_gate",
    "moe_shared_expert_intermediate_size",
)
"""`TransformerConfig` fields that describe the weights, so only config.json can say them."""

FROM_THE_TRAINER = (
    "calculate_per_token_loss",
    "variable_seq_lengths",
    "perform_initialization",
    *("moe_aux_loss_coeff", "moe_z_loss_coeff", "moe_router_load_balancing_type"),
    *("moe_expert_capacity_factor", "moe_pad_expert_input_to_capacity", "moe_token_dropping"),
    *("moe_input_jitter_eps", "moe_router_force_load_balancing"),
)
"""`TransformerConfig` fields whose other value would change the loss without a word. Reinforcement
learning has no use for losses that balance experts; experts with a capacity drop tokens, depending
on padding."""

BALANCING = ("moe_aux_loss_coeff", "moe_router_load_balancing_type")
"""Those of them that a stage may set whose loss can balance experts, see
`RunFacts.balances_experts`."""
_BALANCING_TYPES = ("none", "aux_loss", "seq_aux_loss")
"""Of a micro-batch and of a sequence. A balance over all replicas (`global_aux_loss`) would depend
on the layout."""

_NARROW_WEIGHTS = (
    "weights are kept in precision.params_dtype; with narrower weights the optimizer would take "
    "its fp32 master weights from their initial values, not from model.path"
)

NOT_SUPPORTED: dict[str, dict[str, str]] = {
    "model.megatron": dict.fromkeys(
        ("cuda_graph_impl", "enable_cuda_graph", "external_cuda_graph", "cuda_graph_scope"),
        "a captured graph would leave out the hooks that read hidden states",
    )
    | {
        "fine_grained_activation_offloading": "the policy's forward pass does not announce its "
        "groups of activations, which megatron-core's offloading asks for",
    }
    | dict.fromkeys(("fp8_param", "fp4_param"), _NARROW_WEIGHTS),
    "optimizer.megatron": {
        "optimizer": "only Adam is supported; schedules, checkpoints and their resharding know its "
        "two moments",
        "reuse_grad_buf_for_mxfp8_param_ag": _NARROW_WEIGHTS,
    },
    "parallel.ddp": dict.fromkeys(
        ("fp8_param_gather", "reuse_grad_buf_for_mxfp8_param_ag"), _NARROW_WEIGHTS
    ),
}
"""Pass-through mapping -> fields that cannot be set, and why."""


_UNSET = (False, None, "none", "adam")
"""Values that leave such a field as it is."""


def check_passthrough(facts: RunFacts) -> Iterator[Problem]:
    """The mappings `model.megatron`, `optimizer.megatron` and `parallel.ddp`."""
    recipe = facts.recipe
    content = recipe.model.megatron
    if facts.balances_experts:
        yield from _check_balancing(content)
        content = {name: value for name, value in content.items() if name not in BALANCING}
    yield from _check_mapping("model.megatron", content)
    yield from _check_mapping("optimizer.megatron", recipe.optimizer.megatron)
    yield from _check_mapping("parallel.ddp", recipe.parallel.ddp)


def _check_balancing(content: Mapping[str, Any]) -> Iterator[Problem]:
    """The two fields of the loss that balances experts, which need each other."""
    where = "model.megatron."
    coefficient, kind = (content.get(name) for name in BALANCING)
    number = isinstance(coefficient, (int, float)) and not isinstance(coefficient, bool)
    if coefficient is not None and not (number and coefficient >= 0):
        yield Problem(
            where + BALANCING[0], coefficient, "no coefficient", "give a number, e.g. 0.01"
        )
    elif kind is not None and kind not in _BALANCING_TYPES:
        fix = f"choose one of {', '.join(_BALANCING_TYPES)}"
        yield Problem(where + BALANCING[1], kind, "not supported", fix)
    elif coefficient and kind in (None, "none"):
        problem = f"without {where}{BALANCING[1]} it adds nothing to the loss"
        yield Problem(where + BALANCING[0], coefficient, problem, "set that to aux_loss")


def _check_mapping(mapping: str, content: Mapping[str, Any]) -> Iterator[Problem]:
    """Every key is a field of megatron-core's class, has no setting of its own, and fits its type.

    megatron-core is imported only if there are keys.
    """
    if content:
        cls = _megatron_class(mapping)
        for name, value in content.items():
            yield from _check_field(mapping, cls, str(name), value)


def _megatron_class(mapping: str) -> type:
    if mapping == "model.megatron":
        from megatron.core.transformer.transformer_config import TransformerConfig

        return TransformerConfig
    if mapping == "optimizer.megatron":
        from megatron.core.optimizer.optimizer_config import OptimizerConfig

        return OptimizerConfig
    from megatron.core.distributed import DistributedDataParallelConfig

    return DistributedDataParallelConfig


def _check_field(mapping: str, cls: type, name: str, value: Any) -> Iterator[Problem]:
    setting = f"{mapping}.{name}"
    own = OWN_SETTINGS[mapping].get(name)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if own is not None:
        yield Problem(setting, value, "it has a setting of its own", f"use {own}")
    elif name not in fields:
        near = closest(name, fields)
        fix = f"did you mean {near}?" if near else "see megatron-core's documentation"
        yield Problem(setting, value, f"megatron-core's {cls.__name__} has no such field", fix)
    elif (reason := NOT_SUPPORTED[mapping].get(name)) and value not in _UNSET:
        yield Problem(setting, value, reason, "leave it out")
    elif mapping == "model.megatron" and name in FROM_THE_MODEL:
        fix = "leave it out; config.json of model.path says it"
        yield Problem(setting, value, "it describes the model's weights", fix)
    elif mapping == "model.megatron" and name in FROM_THE_TRAINER:
        yield Problem(setting, value, "the trainer relies on its own value", "leave it out")
    else:
        accepted = _accepted(typing.get_type_hints(cls)[name])
        if accepted and not isinstance(value, accepted):
            problem = f"megatron-core expects {' or '.join(kind.__name__ for kind in accepted)}"
            yield Problem(setting, value, problem, "give a value of that type")
        elif isinstance(value, bool) and accepted and bool not in accepted:
            yield Problem(setting, value, "megatron-core expects a number", "give a number")


def _accepted(hint: Any) -> tuple[type, ...]:
    """Python types a YAML value may have for a plain field; empty if that cannot be told."""
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    members = typing.get_args(hint) if union else (hint,)
    if not all(member in (bool, int, float, str, type(None)) for member in members):
        return ()
    return (*members, int) if float in members and int not in members else members
