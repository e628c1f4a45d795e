"""A tiny model for examples with episodes: it has seen what turns look like, not the right ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {{ m['content'] }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
PAD, START, END, UNKNOWN = "<|pad|>", "<|im_start|>", "<|im_end|>", "<|unknown|>"


def make_tokenizer(texts: Iterable[str], unknown: str = PAD) -> PreTrainedTokenizerFast:
    """One token per word of the texts.

    Args:
        texts: In the order of their tokens.
        unknown: Token of all other words together.
    """
    words = list(dict.fromkeys([PAD, START, END, unknown, *" ".join(texts).split()]))
    model = WordLevel({word: place for place, word in enumerate(words)}, unk_token=unknown)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=unknown
    )
    fast.add_special_tokens({"additional_special_tokens": [START]})
    fast.chat_template = CHAT_TEMPLATE
    return fast


def write_tiny_policy(
    directory: Path,
    tokenizer: PreTrainedTokenizerFast,
    conversation: Callable[[random.Random], list[dict[str, str]]],
    *,
    positions: int,
    steps: int,
    batch: int,
) -> None:
    """Saves a two-layer model, trained on conversations, and its tokenizer; keeps what is there.

    Args:
        directory: Of the model.
        tokenizer: From `make_tokenizer`.
        conversation: Draws one.
        positions: Most tokens that the model reads.
        steps: Of supervised training.
        batch: Conversations of a step.
    """
    if (directory / "config.json").is_file():
        return
    torch.manual_seed(0)
    generator = random.Random(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        talks = [conversation(generator) for _ in range(batch)]
        texts = [tokenizer.apply_chat_template(talk, tokenize=False) for talk in talks]
        read = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
        labels = read["input_ids"].masked_fill(read["attention_mask"] == 0, -100)
        labels = labels.masked_fill(labels == tokenizer.unk_token_id, -100)
        loss = model(
            input_ids=read["input_ids"], attention_mask=read["attention_mask"], labels=labels
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
