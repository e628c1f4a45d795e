"""Tiny models as Megatron-LM builds and saves them: by megatron-core and torch, no code of ours.

`arguments` and `build` do by hand what Megatron-LM does from its command line: an
`argparse.Namespace`, and a GPTModel from it. Weights are those of a Hugging Face model.
"""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_decoder_block_spec,
    get_gpt_layer_local_spec,
)
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.transformer_config import TransformerConfig
from transformers import (
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

VOCABULARY = 131
TOKENS = torch.arange(1, 120, 4)[None]
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""What `--use-rope-scaling` does."""
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**_SHAPE, tie_word_embeddings=False, rope_parameters=_ROPE),
    "qwen2": Qwen2Config(**_SHAPE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**_SHAPE, head_dim=16, tie_word_embeddings=False),
    "mixtral": MixtralConfig(**_SHAPE, num_local_experts=4),
    "qwen3_moe": Qwen3MoeConfig(
        **_SHAPE, **_EXPERTS, head_dim=16, norm_topk_prob=False, mlp_only_layers=[1]
    ),
}


def arguments(config: PretrainedConfig, **sizes: int) -> Namespace:
    """The arguments with which Megatron-LM would train a model of this configuration.

    Args:
        config: Of transformers.
        sizes: Layout, by Megatron-LM's names.
    """
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    rope = config.rope_parameters
    args = Namespace(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        group_query_attention=True,
        num_query_groups=config.num_key_value_heads,
        kv_channels=getattr(config, "head_dim", None)
        or config.hidden_size // config.num_attention_heads,
        max_position_embeddings=config.max_position_embeddings,
        seq_length=config.max_position_embeddings,
        position_embedding_type="rope",
        add_position_embedding=True,
        use_rotary_position_embeddings=False,
        rotary_base=int(rope["rope_theta"]),
        rotary_percent=1.0,
        rotary_interleaved=False,
        use_rope_scaling=rope["rope_type"] == "llama3",
        rope_scaling_factor=8.0,
        normalization="RMSNorm",
        layernorm_epsilon=config.rms_norm_eps,
        layernorm_zero_centered_gamma=False,
        swiglu=True,
        squared_relu=False,
        quick_geglu=False,
        add_bias_linear=False,
        add_qkv_bias=config.model_type == "qwen2",
        qk_layernorm=config.model_type.startswith("qwen3"),
        untie_embeddings_and_output_weights=not config.tie_word_embeddings,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        multi_latent_attention=False,
        mtp_num_layers=None,
        spec=None,
        is_hybrid_model=False,
        window_size=None,
        window_attn_skip_freq=None,
        num_experts=experts,
        moe_layer_freq=1,
        moe_grouped_gemm=False,
        vocab_size=None,
        # A multiple of 128 on each of two ranks.
        padded_vocab_size=256,
        make_vocab_size_divisible_by=128,
        tokenizer_type="HuggingFaceTokenizer",
        params_dtype=torch.float32,
        use_cpu_initialization=True,
        ckpt_format="torch_dist",
        **sizes,
    )
    if experts:
        args.moe_ffn_hidden_size = getattr(config, "moe_intermediate_size", args.ffn_hidden_size)
        args.moe_router_topk = config.num_experts_per_tok
        args.moe_router_pre_softmax = not getattr(config, "norm_topk_prob", True)
        args.moe_router_load_balancing_type = "aux_loss"
        args.moe_token_dispatcher_type = "alltoall"
    if dense := getattr(config, "mlp_only_layers", None):
        args.moe_layer_freq = [int(n not in dense) for n in range(args.num_layers)]
    return args


def build(args: Namespace, *, engine: bool = False, engine_names: bool = False) -> GPTModel:
    """The part of a model that this rank holds.

    Args:
        args: As `arguments` makes them.
        engine: Layers are Transformer Engine's, and not megatron-core's own.
        engine_names: Checkpoints name the norm before experts as Transformer Engine's layers do,
            which Megatron-LM has by default.
    """
    fields = {field.name for field in dataclasses.fields(TransformerConfig)}
    known = {name: value for name, value in vars(args).items() if name in fields}
    config = TransformerConfig(
        **known,
        num_moe_experts=args.num_experts,
        gated_linear_unit=True,
        activation_func=F.silu,
        pipeline_dtype=args.params_dtype,
    )
    if args.num_experts or engine:
        spec = get_gpt_decoder_block_spec(
            config, use_transformer_engine=engine, normalization=args.normalization
        )
        for layer in spec.layer_specs if engine_names else ():
            if layer.submodules.mlp.module is MoELayer:
                layer.submodules.sharded_state_dict_keys_map.pop("pre_mlp_layernorm.", None)
    else:
        spec = get_gpt_layer_local_spec(
            qk_layernorm=args.qk_layernorm, normalization=args.normalization
        )
    return GPTModel(
        config=config,
        transformer_layer_spec=spec,
        vocab_size=args.padded_vocab_size,
        max_sequence_length=args.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
        position_embedding_type=args.position_embedding_type,
        rotary_percent=args.rotary_percent,
        rotary_base=args.rotary_base,
        rope_scaling=args.use_rope_scaling,
    )


@torch.no_grad()
def fill(model: GPTModel, args: Namespace, tensors: dict[str, torch.Tensor]) -> None:
    """Gives this rank's parameters the weights of a Hugging Face model.

    Args:
        model: As `build` makes it.
        args: Its arguments.
        tensors: By the names of the model's files.
    """
    left = dict(model.named_parameters())

    def put(name: str, whole: torch.Tensor, dimension: int | None = None) -> None:
        ranks = parallel_state.get_tensor_model_parallel_world_size()
        rank = parallel_state.get_tensor_model_parallel_rank()
        part = whole if dimension is None else whole.chunk(ranks, dimension)[rank]
        left.pop(name).copy_(part)

    # Megatron-LM trains the rows of the padding like all others.
    embedding = tensors["model.embed_tokens.weight"]
    padding = embedding.new_full((args.padded_vocab_size - len(embedding), args.hidden_size), 0.7)
    if model.pre_process:
        put("embedding.word_embeddings.weight", torch.cat([embedding, padding]), 0)
    for number, layer in enumerate(model.decoder.layers):
        source = f"model.layers.{layer.layer_number - 1}"
        own = {n.removeprefix(f"{source}."): t for n, t in tensors.items() if f"{source}." in n}
        _fill_layer(f"decoder.layers.{number}", own, args, put)
    if model.post_process:
        put("decoder.final_layernorm.weight", tensors["model.norm.weight"])
        head = tensors.get("lm_head.weight", embedding)
        if "output_layer.weight" in left:
            put("output_layer.weight", torch.cat([head, padding]), 0)
    assert not left, f"without weights: {sorted(left)}"


def _fill_layer(place: str, own: dict[str, torch.Tensor], args: Namespace, put: Any) -> None:
    put(f"{place}.input_layernorm.weight", own["input_layernorm.weight"])
    put(f"{place}.pre_mlp_layernorm.weight", own["post_attention_layernorm.weight"])
    for kind in ("weight", "bias") if args.add_qkv_bias else ("weight",):
        # Each group's queries, its key, its value.
        parts = [
            own[f"self_attn.{each}_proj.{kind}"].unflatten(0, (args.num_query_groups, -1))
            for each in "qkv"
        ]
        put(f"{place}.self_attention.linear_qkv.{kind}", torch.cat(parts, 1).flatten(0, 1), 0)
    put(f"{place}.self_attention.linear_proj.weight", own["self_attn.o_proj.weight"], 1)
    if args.qk_layernorm:
        put(f"{place}.self_attention.q_layernorm.weight", own["self_attn.q_norm.weight"])
        put(f"{place}.self_attention.k_layernorm.weight", own["self_attn.k_norm.weight"])
    if "mlp.gate_proj.weight" in own:
        matrices = [own[f"mlp.{name}_proj.weight"] for name in ("gate", "up", "down")]
        _fill_mlp(f"{place}.mlp", matrices, put)
        return
    mixtral = "block_sparse_moe.gate.weight" in own
    block = "block_sparse_moe" if mixtral else "mlp"
    names = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    put(f"{place}.mlp.router.weight", own[f"{block}.gate.weight"])
    ranks = parallel_state.get_expert_model_parallel_world_size()
    count = args.num_experts // ranks
    first = count * parallel_state.get_expert_model_parallel_rank()
    for number in range(count):
        expert = [own[f"{block}.experts.{first + number}.{name}.weight"] for name in names]
        _fill_mlp(f"{place}.mlp.experts.local_experts.{number}", expert, put)


def _fill_mlp(place: str, matrices: list[torch.Tensor], put: Any) -> None:
    """Each rank has its part of the gate, then its part of the up projection."""
    gate, up, down = matrices
    ranks = parallel_state.get_tensor_model_parallel_world_size()
    parts = zip(gate.chunk(ranks), up.chunk(ranks), strict=True)
    put(f"{place}.linear_fc1.weight", torch.cat([torch.cat(pair) for pair in parts]), 0)
    put(f"{place}.linear_fc2.weight", down, 1)


def checkpoint_folder(save: Path, iteration: int) -> Path:
    """Where Megatron-LM saves an iteration."""
    return save / f"iter_{iteration:07d}"
