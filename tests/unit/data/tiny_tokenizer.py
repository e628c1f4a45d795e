"""A tokenizer of one token per character, with a chat template in the style of ChatML."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789+-*=? \n.:"
SPECIAL = ("<pad>", "<bos>", "<eos>", "<im_start>", "<im_end>")
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'tool' %}{{ raise_exception('tools are not supported') }}{% endif %}"
    "<im_start>{{ m.role }}\n{{ m.content }}<im_end>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<im_start>assistant\n{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}no thinking{% endif %}"
)


def build_tokenizer(chat_template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Adds <bos> to plain texts, as the tokenizers of base models do."""
    names = [*SPECIAL, *CHARACTERS]
    model = Tokenizer(BPE(vocab={name: id for id, name in enumerate(names)}, merges=[]))
    model.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=["<im_start>", "<im_end>"],
        name_or_path="models/tiny",
    )
    tokenizer.chat_template = chat_template
    return tokenizer
