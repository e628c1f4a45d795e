"""Writes a tiny model that can answer the questions of the example.

    python examples/reasoning_gym/prepare.py --directory outputs/reasoning_gym/tiny

A two-layer model that has seen what an answer looks like, but not which is right. It takes some
seconds on a CPU.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

SYSTEM = "Write the answer as <answer> 7 </answer>"
QUESTION = "State the final answer to the following arithmetic problem: {} {} {} ="
NUMBERS = range(-9, 19)
"""Sums and differences of two digits."""
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {{ m['content'] }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>", "<|unknown|>")
FORMAT_STEPS = 100
"""Steps of supervised training on questions with random answers."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of the questions and answers."""
    texts = ["system user assistant", SYSTEM, QUESTION.format("+", "-", ""), *map(str, NUMBERS)]
    words = list(dict.fromkeys([*SPECIAL, *" ".join(texts).split()]))
    model = WordLevel({word: place for place, word in enumerate(words)}, unk_token=SPECIAL[3])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        unk_token=SPECIAL[3],
    )
    fast.add_special_tokens({"additional_special_tokens": [SPECIAL[1]]})
    fast.chat_template = CHAT_TEMPLATE
    return fast


def conversation(generator: random.Random) -> list[dict[str, str]]:
    """A question with a random answer."""
    left, right = generator.randrange(10), generator.randrange(10)
    question = QUESTION.format(left, generator.choice("+-"), right)
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": question},
        {"role": "assistant", "content": f"<answer> {generator.choice(NUMBERS)} </answer>"},
    ]


def write_tiny_model(directory: Path) -> None:
    """Saves the tiny model and its tokenizer; one that is there is kept."""
    if (directory / "config.json").is_file():
        return
    torch.manual_seed(0)
    generator = random.Random(0)
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(FORMAT_STEPS):
        talks = [conversation(generator) for _ in range(32)]
        texts = [tokenizer.apply_chat_template(talk, tokenize=False) for talk in talks]
        batch = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def main() -> None:
    """Writes the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, default=Path("outputs/reasoning_gym/tiny"))
    write_tiny_model(parser.parse_args().directory)


if __name__ == "__main__":
    main()
