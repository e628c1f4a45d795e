"""Writes the questions of an example with an agent, and a tiny model that can play it.

    python examples/agents/prepare.py textworld --directory outputs/agents/textworld

makes `<directory>/questions.jsonl` and `<directory>/tiny`, a two-layer model that has seen what
commands look like, but not which are right. It takes some seconds on a CPU. Questions alone, for a
model of yours: `--no-model`.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

RULES = {
    "textworld": "You play a text adventure. Say one command, such as: look",
    "scienceworld": "You work in a laboratory. Say one command, such as: look around",
}
COMMANDS = {
    "textworld": [
        *("look", "inventory", "go north", "go south", "go east", "go west"),
        *("take all", "open chest", "open door", "unlock chest with keycard"),
    ],
    "scienceworld": [
        *("look around", "inventory", "wait1", "go to hallway", "go to kitchen", "go to outside"),
        *("focus on orange", "focus on avocado seed", "open door to hallway"),
    ],
}
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {{ m['content'] }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>", "<|unknown|>")
GAMES = 8
"""Questions: different games of the same size."""
FORMAT_STEPS = 100
"""Steps of supervised training on conversations with random commands."""


def questions(agent: str) -> list[dict[str, Any]]:
    """One row for each game; nobody reads the answer, because the environment scores."""
    column = {"textworld": "seed", "scienceworld": "variation"}[agent]
    rows = [{"prompt": RULES[agent], "answer": "-", column: number} for number in range(GAMES)]
    return [row | {"task": "find-plant"} for row in rows] if agent == "scienceworld" else rows


def make_tokenizer(agent: str) -> PreTrainedTokenizerFast:
    """One token per word of the rules and commands; all other words are one token together."""
    texts = ["system user assistant tool", RULES[agent], *COMMANDS[agent]]
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


def conversation(agent: str, generator: random.Random) -> list[dict[str, str]]:
    """Random commands, answered with words that the model does not know."""
    texts = [RULES[agent]]
    for _ in range(2):
        texts += [generator.choice(COMMANDS[agent]), "something " * generator.randrange(8, 64)]
    roles = ["user", "assistant", "user", "assistant", "user"]
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]


def write_tiny_model(agent: str, directory: Path) -> None:
    """Saves the tiny model and its tokenizer; one that is there is kept."""
    if (directory / "config.json").is_file():
        return
    torch.manual_seed(0)
    generator = random.Random(0)
    tokenizer = make_tokenizer(agent)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(FORMAT_STEPS):
        talks = [conversation(agent, generator) for _ in range(16)]
        texts = [tokenizer.apply_chat_template(talk, tokenize=False) for talk in talks]
        batch = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        labels = labels.masked_fill(labels == tokenizer.unk_token_id, -100)
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
    parser.add_argument("agent", choices=sorted(RULES))
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--no-model", action="store_true")
    given = parser.parse_args()
    directory = given.directory or Path("outputs/agents") / given.agent
    directory.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in questions(given.agent))
    (directory / "questions.jsonl").write_text(lines, encoding="utf-8")
    if not given.no_model:
        write_tiny_model(given.agent, directory / "tiny")


if __name__ == "__main__":
    main()
