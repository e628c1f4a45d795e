"""What the checkpoint tests train: a tiny model, fixed micro-batches, a loss of both signs."""

from __future__ import annotations

from pathlib import Path

import torch
from megatron.core import parallel_state
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from megatron_resrl.config.schema import (
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PrecisionConfig,
    Recipe,
)
from megatron_resrl.policy.batches import MicroBatch, TokenBatch, TokenSequence
from megatron_resrl.policy.policy import Policy
from megatron_resrl.policy.results import UpdateResult

VOCABULARY = 71
"""Odd: tensor-parallel ranks pad their matrices."""
_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
CONFIGS: dict[str, PretrainedConfig] = {
    "qwen3": Qwen3Config(**_SHAPE, head_dim=8, tie_word_embeddings=False),
    "tied_llama": LlamaConfig(**_SHAPE, tie_word_embeddings=True),
    "qwen3_moe": Qwen3MoeConfig(
        **_SHAPE,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        norm_topk_prob=True,
        tie_word_embeddings=False,
    ),
    "gemma3": Gemma3TextConfig(
        **_SHAPE,
        head_dim=8,
        pad_token_id=None,
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention"] * 2,
    ),
    "wider_qwen3": Qwen3Config(
        **_SHAPE | {"hidden_size": 48}, head_dim=8, tie_word_embeddings=False
    ),
}
_LENGTHS = ((3, 4), (7, 1), (1, 6), (5, 9))
_TOKENS = sum(response for _, response in _LENGTHS)


def write_models(directory: Path) -> Path:
    """Saves every configuration with random weights below `directory`, under its name."""
    for number, (name, config) in enumerate(CONFIGS.items()):
        torch.manual_seed(number)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.save_pretrained(directory / name)
    return directory


def recipe(
    model: Path, layout: dict, *, dropout: float = 0.0, dtype: str = "fp32", lr: float = 1e-2
) -> Recipe:
    """Settings under which a few steps move every weight visibly.

    Adam's epsilon is large, because it divides fp32 noise in tiny gradients by their size, and
    that noise differs between layouts.
    """
    return Recipe(
        model=ModelConfig(str(model), hidden_dropout=dropout, attention_dropout=dropout),
        parallel=ParallelConfig(**layout, timeout_minutes=1.0),
        precision=PrecisionConfig(dtype),
        optimizer=OptimizerConfig(lr=lr, lr_warmup_steps=2, adam_eps=1e-3),
    )


def take_step(policy: Policy, number: int) -> UpdateResult:
    """Optimizer step `number` on a batch of its own, dealt to the data-parallel replicas."""
    generator = torch.Generator().manual_seed(number)
    drawn = [
        torch.randint(0, VOCABULARY, (prompt + response,), generator=generator).tolist()
        for prompt, response in _LENGTHS
    ]
    advantages = torch.randn(len(_LENGTHS), generator=generator)
    replicas = parallel_state.get_data_parallel_world_size()
    own = range(parallel_state.get_data_parallel_rank(), len(_LENGTHS), replicas)
    sequences = [
        TokenSequence(tuple(drawn[i][: _LENGTHS[i][0]]), tuple(drawn[i][_LENGTHS[i][0] :]))
        for i in own
    ]

    def loss(log_probs: torch.Tensor, _: torch.Tensor, batch: MicroBatch) -> tuple:
        weights = advantages[list(own)][batch.host.sequence_index].to(log_probs.device)
        value = -(weights * log_probs).sum() / _TOKENS
        return value, value.item()

    return policy.update(policy.micro_batches(TokenBatch.from_sequences(sequences), 1), loss)
