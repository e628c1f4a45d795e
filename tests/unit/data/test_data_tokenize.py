"""From messages to token ids, with a tokenizer of one token per character."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from questions import tokenize_prompts
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from megatron_resrl.data.prompts import PromptRecord
from megatron_resrl.errors import InputError

SPECIAL = ("<pad>", "<bos>", "<eos>", "<start>", "<end>")
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789+-*=? \n.:"
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'tool' %}{{ raise_exception('tools are not supported') }}{% endif %}"
    "<start>{{ m.role }}\n{{ m.content }}<end>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<start>assistant\n{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}no thinking{% endif %}"
)


def build_tokenizer(chat_template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Adds <bos> to plain texts, as the tokenizers of base models do."""
    vocabulary = {name: token for token, name in enumerate([*SPECIAL, *CHARACTERS])}
    model = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    model.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=["<start>", "<end>"],
        name_or_path="models/tiny",
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def record(index: int, *contents: str, role: str = "user") -> PromptRecord:
    messages = [{"role": role, "content": content} for content in contents]
    return PromptRecord(index, messages, "2", "sums", {})


def text_of(tokenizer: Any, token_ids: tuple[int, ...]) -> str:
    return "".join(tokenizer.convert_ids_to_tokens(token_ids))


def test_tokenize_applies_the_template_up_to_the_assistant() -> None:
    tokenizer = build_tokenizer()
    records = [record(0, "1+1?"), record(1, "2+2?")]
    tokenized = tokenize_prompts(records, tokenizer, max_prompt_length=100)
    first, second = tokenized.prompts
    assert first.record is records[0]
    assert text_of(tokenizer, first.token_ids) == "<start>user\n1+1?<end><start>assistant\n"
    assert text_of(tokenizer, second.token_ids) == "<start>user\n2+2?<end><start>assistant\n"
    assert tokenized.dropped == []


def test_tokenize_gives_the_ids_of_transformers() -> None:
    tokenizer = build_tokenizer()
    one = record(0, "what is 6*7?", "be quick")
    expected = tokenizer.apply_chat_template(
        one.messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    (prompt,) = tokenize_prompts([one], tokenizer, max_prompt_length=100).prompts
    assert isinstance(prompt.token_ids, tuple)
    assert all(type(token) is int for token in prompt.token_ids)
    assert list(prompt.token_ids) == expected


def test_chat_template_kwargs_reach_the_template() -> None:
    tokenizer = build_tokenizer()
    (prompt,) = tokenize_prompts(
        [record(0, "1+1?")],
        tokenizer,
        max_prompt_length=100,
        chat_template_kwargs={"enable_thinking": False},
    ).prompts
    assert text_of(tokenizer, prompt.token_ids).endswith("<start>assistant\nno thinking")


def test_tokenize_without_template_adds_what_the_tokenizer_does() -> None:
    tokenizer = build_tokenizer(chat_template=None)
    (prompt,) = tokenize_prompts(
        [record(0, "1+1=")], tokenizer, max_prompt_length=100, apply_chat_template=False
    ).prompts
    assert list(prompt.token_ids) == tokenizer("1+1=").input_ids
    assert text_of(tokenizer, prompt.token_ids) == "<bos>1+1="


def test_tokenize_drops_and_reports_prompts_over_the_limit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    records = [record(3, "a" * 4), record(5, "a" * 5), record(8, "a" * 9), record(9, "a")]
    with caplog.at_level(logging.WARNING):
        tokenized = tokenize_prompts(
            records, build_tokenizer(), max_prompt_length=5, apply_chat_template=False
        )
    # With <bos> the lengths are 5, 6, 10 and 2.
    assert [prompt.record.index for prompt in tokenized.prompts] == [3, 9]
    assert tokenized.dropped == [5, 8]
    assert caplog.messages == [
        "2 of 4 prompts are longer than data.max_prompt_length = 5 tokens; the longest has 10: "
        "they are dropped"
    ]


def test_tokenize_reports_nothing_where_nothing_is_dropped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        tokenize_prompts([record(0, "1+1?")], build_tokenizer(), max_prompt_length=100)
    assert caplog.messages == []


def test_tokenize_makes_no_prompts_of_no_records() -> None:
    tokenized = tokenize_prompts([], build_tokenizer(), max_prompt_length=5)
    assert (tokenized.prompts, tokenized.dropped) == ([], [])


def refused(records: list[PromptRecord], template: str | None = TEMPLATE, **settings: Any) -> str:
    settings = {"max_prompt_length": 100, **settings}
    with pytest.raises(InputError) as caught:
        tokenize_prompts(records, build_tokenizer(template), **settings)
    return str(caught.value)


def test_tokenize_refuses_a_limit_that_leaves_nothing() -> None:
    assert refused([record(0, "1+1?")], max_prompt_length=5) == (
        "1 of 1 prompts are longer than data.max_prompt_length = 5 tokens; the longest has 22: "
        "no prompt is left, raise the limit"
    )


def test_tokenize_names_a_tokenizer_without_template() -> None:
    assert refused([record(0, "1+1?")], template=None) == (
        "the tokenizer of 'models/tiny' has no chat template: use the tokenizer of an instruct "
        "model (model.tokenizer_path), or set data.apply_chat_template to false"
    )


def test_tokenize_names_a_prompt_that_the_template_refuses() -> None:
    assert refused([record(0, "1+1?"), record(4, "1+1?", role="tool")]) == (
        "the chat template of 'models/tiny' refuses prompt 4 of sums, with roles tool: "
        "tools are not supported"
    )


def test_tokenize_needs_a_template_for_several_messages() -> None:
    said = refused([record(4, "be brief", "1+1?")], apply_chat_template=False)
    assert said.startswith("prompt 4 of sums has 2 messages, which only a chat template can join")


def test_tokenize_names_a_prompt_without_tokens() -> None:
    template = "{{ messages[0].content }}"
    assert refused([record(4, "§")], template=template) == "prompt 4 of sums has no tokens"


def test_chat_template_kwargs_cannot_change_what_is_needed() -> None:
    said = refused([record(0, "1+1?")], chat_template_kwargs={"tokenize": True})
    assert said == (
        "data.chat_template_kwargs = {'tokenize': True}: tokenize cannot be set; leave it out; the "
        "trainer sets it"
    )
