"""A tiny model with a chat template, conversations, and a recipe that fine-tunes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from tiny_recipe import write_model
from transformers import AutoTokenizer

TEMPLATE = (
    "{{ bos_token }} {% for m in messages %}{% if m['role'] == 'assistant' %}"
    "62 {{ m['content'] }} {{ eos_token }} {% else %}61 {{ m['content'] }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}62 {% endif %}"
)
"""61 begins a user's turn, 62 the assistant's."""


def write_chat_model(directory: Path, **options: Any) -> Path:
    """`tiny_recipe.write_model` with `TEMPLATE`."""
    write_model(directory, **options)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(directory)
    return directory


def conversation(number: int, turns: int = 1) -> dict[str, Any]:
    """Counts on from a number; conversations of different numbers have different lengths."""
    messages = []
    for turn in range(turns):
        first = 3 + number + turn
        answer = " ".join(str(first + step) for step in range(1, 2 + number % 5))
        messages.append({"role": "user", "content": str(first)})
        messages.append({"role": "assistant", "content": answer})
    return {"messages": messages}


def write_chat_task(directory: Path, **sections: dict[str, Any]) -> Path:
    """Writes conversations and a recipe of four steps of eight conversations in fp32.

    Args:
        directory: For `train.jsonl`, `held.jsonl`, `recipe.yaml`, and what the run writes.
        sections: Settings that differ, by section; `model` has to say `path`.
    """
    rows = [conversation(number, 1 + number % 3) for number in range(20)]
    for name, part in {"train": rows[:16], "held": rows[16:]}.items():
        text = "".join(json.dumps(row) + "\n" for row in part)
        (directory / f"{name}.jsonl").write_text(text)
    settings: dict[str, Any] = {
        "output_dir": str(directory / "run"),
        "steps": 4,
        "precision": {"params_dtype": "fp32"},
        "data": {"train_files": str(directory / "train.jsonl"), "max_length": 48},
        "batch": {"global_batch_size": 8},
        "evaluation": {
            "files": str(directory / "held.jsonl"),
            "every": 2,
            "max_response_length": 4,
        },
        "optimizer": {"lr": 1e-2, "lr_warmup_steps": 0, "adam_eps": 1e-3},
        "checkpoint": {"save_every": 2},
        "logging": {"tensorboard": False, "progress_bar": False},
    }
    for section, changes in sections.items():
        settings[section] = settings.get(section, {}) | changes
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path
