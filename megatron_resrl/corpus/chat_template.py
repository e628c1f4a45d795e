"""The chat template of a new tokenizer, and the special tokens that it needs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from megatron_resrl.errors import InputError

CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}
            {{- message['content'] + '<|im_end|>' }}
        {%- endgeneration %}
    {%- else %}
        {{- message['content'] + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""Marks what the assistant generates: the content and the token that ends its turn."""

_NAMED = {"chatml": (CHATML, "<|im_end|>")}
"""Templates by name, each with the end-of-sequence token: the one that ends a turn."""
_DEFAULT_EOS = "</s>"

_MARKER = re.compile(r"<\|[\w-]+\|>")
_GENERATION = re.compile(r"\{%[-+]?\s*generation\b")
_ANSWER = "An answer."


def chat_template(name: str) -> tuple[str, str]:
    """A template and the end-of-sequence token that goes with it.

    Args:
        name: `chatml`, or the path of a file with a Jinja template.

    Raises:
        InputError: There is no such file.
    """
    if name in _NAMED:
        return _NAMED[name]
    try:
        return Path(name).read_text(encoding="utf-8"), _DEFAULT_EOS
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--chat_template {name} is neither {', '.join(_NAMED)} nor a readable file ({error})"
        ) from error


def markers(template: str) -> list[str]:
    """The texts of the form `<|...|>` in a template, each once: they become special tokens."""
    return list(dict.fromkeys(_MARKER.findall(template)))


def check_chat_template(tokenizer: Any) -> bool:
    """Formats a conversation; returns whether the template marks what the assistant generates.

    Raises:
        InputError: The template is refused, leaves the answer out, or marks something else.
    """
    messages = [{"role": "user", "content": "A question."}]
    messages.append({"role": "assistant", "content": _ANSWER})
    marked = _GENERATION.search(tokenizer.chat_template) is not None
    try:
        encoded = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=marked
        )
    except Exception as error:  # A template is a program, which may raise anything.
        raise InputError(
            f"--chat_template cannot format a question and its answer: {error}"
        ) from error
    ids = encoded["input_ids"]
    if marked:
        ids = [each for each, mine in zip(ids, encoded["assistant_masks"], strict=True) if mine]
    if _ANSWER not in tokenizer.decode(ids):
        where = "between {% generation %} and {% endgeneration %}" if marked else "in the chat"
        raise InputError(f"--chat_template: the assistant's content does not stand {where}")
    return marked
