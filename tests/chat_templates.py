"""Chat templates that write conversations as five families do, and a tokenizer for them.

Written for the tests: they give the texts of Llama 3, Qwen2.5, Qwen3, Mistral and SmolLM2, in the
parts that the tests use.
"""

from __future__ import annotations

import string

from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe helpful.<|im_end|>\n{% endif %}"
)
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}"
    "<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}"
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN25 = _DEFAULT_SYSTEM + _CHATML
SMOLLM2 = _DEFAULT_SYSTEM + _CHATML
QWEN3 = (
    "{% set last = namespace(user=-1) %}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% set parts = m['content'].split('</think>') %}"
    "{% set answer = parts[-1].lstrip('\n') %}"
    "{% if m['role'] == 'assistant' and loop.index0 > last.user %}"
    "<think>\n{{ parts[0].split('<think>')[-1].strip('\n') if parts | length > 1 else '' }}\n"
    "</think>\n\n{{ answer }}{% else %}{{ answer }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] }}[/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)

_CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
FAMILIES = {
    "llama3": (LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>"),
    "qwen2.5": (QWEN25, _CHATML_TOKENS, "<|im_end|>"),
    "qwen3": (QWEN3, _CHATML_TOKENS, "<|im_end|>"),
    "mistral": (MISTRAL, ("[INST]", "[/INST]", "</s>"), "</s>"),
    "smollm2": (SMOLLM2, _CHATML_TOKENS, "<|im_end|>"),
}
"""Template, special tokens, and the token that ends a turn."""
BOS = "<|begin_of_text|>"


def family_tokenizer(template: str, special: tuple[str, ...], eos: str) -> PreTrainedTokenizerFast:
    """One token per printable character, and merges of line ends, as real vocabularies have."""
    names = [BOS, *special, *string.printable, "\n\n"]
    vocabulary = {name: token for token, name in enumerate(names)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(BPE(vocab=vocabulary, merges=[("\n", "\n")])),
        bos_token=BOS,
        eos_token=eos,
        additional_special_tokens=[name for name in special if name != eos],
        name_or_path="models/tiny",
    )
    tokenizer.chat_template = template
    return tokenizer
