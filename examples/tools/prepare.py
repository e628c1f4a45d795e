"""Writes the questions of the two examples with environments, and a tiny model that can play them.

    python examples/tools/prepare.py --directory outputs/tools

makes `<directory>/calculator.jsonl`, `<directory>/number_game.jsonl` and `<directory>/tiny`, a
two-layer model of 60,000 parameters that has seen what turns, calls and guesses look like, but not
which are right. It takes some seconds on a CPU.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

FACTORS = range(2, 6)
LOW, HIGH = 1, 16
QUESTION = "What is {} * {} ?"
GAME = "Find the number from 1 to 16 ."
CALL = '<tool_call>{{"name":"calculator","arguments":{{"expression":"{}*{}"}}}}</tool_call>'
"""Without spaces, so that it is one word."""
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {{ m['content'] }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>")
FORMAT_STEPS = 150
"""Steps of supervised training on conversations with random guesses and factors."""


def write_questions(directory: Path) -> None:
    """Products for the calculator, hidden numbers for the game."""
    products = [
        {"prompt": QUESTION.format(a, b), "answer": str(a * b)} for a in FACTORS for b in FACTORS
    ]
    games = [{"prompt": GAME, "answer": str(secret)} for secret in range(LOW, HIGH + 1)]
    for name, rows in (("calculator", products), ("number_game", games)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (directory / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word; a whole call is a word."""
    calls = [CALL.format(a, b) for a in FACTORS for b in FACTORS]
    numbers = [str(number) for number in range(max(FACTORS) ** 2 + 1)]
    texts = ["system user assistant tool higher lower", QUESTION, GAME]
    words = list(dict.fromkeys([*SPECIAL, *numbers, *" ".join(texts).split(), *calls]))
    model = WordLevel({word: place for place, word in enumerate(words)}, unk_token=SPECIAL[0])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=SPECIAL[0], eos_token=SPECIAL[2]
    )
    fast.add_special_tokens({"additional_special_tokens": [SPECIAL[1]]})
    fast.chat_template = CHAT_TEMPLATE
    return fast


def conversation(generator: random.Random) -> list[dict[str, str]]:
    """A well-formed conversation; its calls and guesses are random."""
    a, b = generator.choice(FACTORS), generator.choice(FACTORS)
    if generator.random() < 0.5:
        called = generator.choice(FACTORS), generator.choice(FACTORS)
        turns = [CALL.format(*called), str(called[0] * called[1]), str(called[0] * called[1])]
        roles = ["user", "assistant", "tool", "assistant"]
        texts = [QUESTION.format(a, b), *turns]
    else:
        roles, texts = ["user"], [GAME]
        for _ in range(4):
            roles += ["assistant", "user"]
            texts += [str(generator.randint(LOW, HIGH)), generator.choice(("higher", "lower"))]
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]


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
        texts = [
            tokenizer.apply_chat_template(conversation(generator), tokenize=False)
            for _ in range(32)
        ]
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
    """Writes questions and model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, default=Path("outputs/tools"))
    directory = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    write_questions(directory)
    write_tiny_model(directory / "tiny")


if __name__ == "__main__":
    main()
