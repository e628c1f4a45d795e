"""Tiny random Hugging Face models of every supported family, a ragged batch, and their reference.

All norm weights and biases are random, so that a parameter mapped to the wrong place shows.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

VOCABULARY = 131
"""Not a multiple of 2 or 4: the matrices of tensor-parallel ranks are padded."""
TEMPERATURE = 0.8
LEARNING_RATE = 1e-2
ADAM_EPS = 1e-3
"""Large, because Adam divides fp32 noise in tiny gradients by the root of their square."""
WEIGHT_DECAY = 0.1
CLIP_GRAD = 1.0
STEPS = 2

LONGEST = 16
"""Tokens of the longest of `ragged_token_ids`."""
WINDOW = 5
"""Tokens that layers with a window attend to."""

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_EXPERTS: dict[str, Any] = {
    "head_dim": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "tie_word_embeddings": False,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
"""Multiplies sines and cosines by 1.14."""

_GEMMA_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 100_000.0, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
}


def family_configs() -> dict[str, PretrainedConfig]:
    """One configuration per family: grouped queries, four layers, head sizes that differ.

    Of the two Qwen3 mixtures of experts, one divides the weights of a token's experts by their
    sum; the other has a dense layer. Mistral's heads are larger than hidden size / heads. All
    layers of Mistral and of that second mixture, the upper half of Qwen2's and every other of
    Gemma's have an attention window that is shorter than most of `ragged_token_ids`. Mixtral's file
    leaves the head size out.
    """
    return {
        "llama": LlamaConfig(**_SHAPE, tie_word_embeddings=False, rope_parameters=_LLAMA3_ROPE),
        "llama_tied": LlamaConfig(**_SHAPE, tie_word_embeddings=True, rms_norm_eps=1e-5),
        "qwen2": Qwen2Config(
            **_SHAPE,
            tie_word_embeddings=True,
            use_sliding_window=True,
            sliding_window=WINDOW,
            max_window_layers=2,
        ),
        "qwen3": Qwen3Config(
            **_SHAPE, tie_word_embeddings=False, head_dim=16, rope_parameters=_YARN_ROPE
        ),
        "qwen3_moe": Qwen3MoeConfig(**_SHAPE, **_EXPERTS, norm_topk_prob=True),
        "qwen3_moe_mixed": Qwen3MoeConfig(
            **_SHAPE,
            **_EXPERTS,
            mlp_only_layers=[1],
            use_sliding_window=True,
            sliding_window=WINDOW,
        ),
        "mistral": MistralConfig(**_SHAPE, head_dim=16, sliding_window=WINDOW),
        "mixtral": MixtralConfig(**_SHAPE, num_local_experts=4),
        "gemma3": Gemma3TextConfig(
            **_SHAPE,
            head_dim=16,
            pad_token_id=None,  # torch's embedding has no gradient for this token.
            query_pre_attn_scalar=24,
            sliding_window=WINDOW,
            layer_types=["sliding_attention", "full_attention"] * 2,
            rope_parameters=_GEMMA_ROPE,
        ),
    }


def windowed_configs() -> dict[str, PretrainedConfig]:
    """Models of families that mostly come without a window, with one.

    All layers of Mixtral and the upper half of Qwen3's have it.
    """
    upper_half = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}
    return {
        "qwen3_windowed": Qwen3Config(**_SHAPE, **upper_half, head_dim=16),
        "mixtral_windowed": MixtralConfig(**_SHAPE, num_local_experts=4, sliding_window=WINDOW),
    }


def write_families(
    directory: Path, names: Collection[str] | None = None, *, bf16: bool = False
) -> dict[str, Path]:
    """Saves random models and a tokenizer.

    Args:
        directory: Gets a directory per model.
        names: Of `family_configs` and `windowed_configs`; None: all of `family_configs`.
        bf16: Weights are numbers that bf16 holds, in files of fp32.

    Returns:
        The directories by name.
    """
    paths = {}
    names = family_configs() if names is None else names
    for number, (name, config) in enumerate((family_configs() | windowed_configs()).items()):
        if name not in names:
            continue
        torch.manual_seed(number)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        randomise(model)
        if bf16:
            model.bfloat16().float()
        paths[name] = directory / name
        model.save_pretrained(paths[name])
        tokenizer().save_pretrained(paths[name])
    return paths


def read_model(path: Path) -> PreTrainedModel:
    """transformers' model in fp32, written out: masked scores, experts one after the other."""
    return AutoModelForCausalLM.from_pretrained(
        path,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
    )


@torch.no_grad()
def randomise(model: PreTrainedModel) -> None:
    """Gives every parameter values that matter: norms around 1, biases and matrices around 0."""
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            around = 0 if model.config.model_type == "gemma3_text" else 1  # Gemma adds the 1.
            parameter.copy_(around + 0.3 * torch.randn_like(parameter))
        else:
            parameter.copy_(0.12 * torch.randn_like(parameter))


def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer with the models' vocabulary size."""
    words = {f"w{number}": number for number in range(VOCABULARY)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")))


def ragged_token_ids() -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Six (prompt, response) pairs of different lengths, a one-token prompt and response too."""
    generator = torch.Generator().manual_seed(5)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, VOCABULARY, (count,), generator=generator).tolist())

    lengths = [(3, 4), (7, 1), (1, 6), (5, LONGEST - 5), (12, 2), (4, 5)]
    return [(draw(prompt), draw(response)) for prompt, response in lengths]


def loss_coefficients() -> torch.Tensor:
    """[sequences, longest response]: factor of each response token's -log p in the loss.

    Of both signs, as advantages are; the denominator is the number of tokens of the whole batch.
    """
    pairs = ragged_token_ids()
    total = sum(len(response) for _, response in pairs)
    longest = max(len(response) for _, response in pairs)
    generator = torch.Generator().manual_seed(6)
    return (0.5 + torch.randn(len(pairs), longest, generator=generator)) / total


@dataclass(frozen=True)
class Reference:
    """What `transformers` and torch compute for one family; lists are over the sequences."""

    logits: list[torch.Tensor]
    """[tokens - 1, V] at every input position."""
    log_probs: list[torch.Tensor]
    """[response] at `TEMPERATURE`."""
    entropy: list[torch.Tensor]
    """[response] at `TEMPERATURE`."""
    hidden: list[torch.Tensor]
    """[response, H] the states of `hidden_states[-2]` that predict the response."""
    losses: list[float]
    """Of each step."""
    grad_norms: list[float]
    """Of each step, before clipping; tied matrices count once."""
    weights: list[dict[str, torch.Tensor]]
    """Before the first step and after each; a tied output matrix is left out."""


def reference(path: Path) -> Reference:
    """Runs every sequence alone through the model; then takes `STEPS` steps on their loss."""
    model = read_model(path)
    optimizer = _adamw(model)
    weights, losses, grad_norms, runs = [named_weights(model)], [], [], []
    for _ in range(STEPS):
        runs.append([_run(model, *pair) for pair in ragged_token_ids()])
        log_probs = [run["log_probs"] for run in runs[-1]]
        factors = loss_coefficients()
        loss = -sum((row[: len(lp)] * lp).sum() for row, lp in zip(factors, log_probs, strict=True))
        optimizer.zero_grad()
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_GRAD)
        optimizer.step()
        losses.append(loss.item())
        grad_norms.append(grad_norm.item())
        weights.append(named_weights(model))
    fields = {name: [run[name].detach() for run in runs[0]] for name in runs[0][0]}
    return Reference(**fields, losses=losses, grad_norms=grad_norms, weights=weights)


def named_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Copies under the names of files, where each expert's gate, up and down stand alone."""
    named = {}
    # named_parameters gives a tied matrix once, under the embedding's name.
    for name, parameter in model.named_parameters():
        value = parameter.detach().clone()
        layer = name.partition("experts.")[0]
        if name.endswith("experts.gate_up_proj"):
            half = value.shape[1] // 2
            for number in range(len(value)):
                named[f"{layer}experts.{number}.gate_proj.weight"] = value[number, :half]
                named[f"{layer}experts.{number}.up_proj.weight"] = value[number, half:]
        elif name.endswith("experts.down_proj"):
            for number in range(len(value)):
                named[f"{layer}experts.{number}.down_proj.weight"] = value[number]
        else:
            named[name] = value
    return _mixtral_names(named) if model.config.model_type == "mixtral" else named


def _mixtral_names(named: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Under the names that Mixtral's files give to routers and experts."""
    spellings = {
        ".mlp.": ".block_sparse_moe.",
        ".gate_proj.": ".w1.",
        ".down_proj.": ".w2.",
        ".up_proj.": ".w3.",
    }
    renamed = {}
    for name, value in named.items():
        for ours, theirs in spellings.items():
            name = name.replace(ours, theirs)
        renamed[name] = value
    return renamed


def _run(
    model: PreTrainedModel, prompt: tuple[int, ...], response: tuple[int, ...]
) -> dict[str, torch.Tensor]:
    ids = torch.tensor([prompt + response])
    output = model(ids[:, :-1], output_hidden_states=True)
    predicting = slice(len(prompt) - 1, None)
    distribution = (output.logits[0, predicting] / TEMPERATURE).log_softmax(-1)
    targets = torch.tensor(response)
    return {
        "logits": output.logits[0],
        "log_probs": distribution.gather(1, targets[:, None])[:, 0],
        "entropy": -(distribution.exp() * distribution).sum(-1),
        "hidden": output.hidden_states[-2][0, predicting],
    }


def _adamw(model: PreTrainedModel) -> torch.optim.AdamW:
    """Megatron's rule: vectors (norms, biases) do not decay."""
    vectors = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.999), eps=ADAM_EPS)
