"""One beginning of sequence, whoever writes it: tokenizers of published families."""

from __future__ import annotations

from typing import Any

import pytest
from questions import tokenize_prompts
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import (
    GemmaTokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

from megatron_resrl.data.prompts import PromptRecord

WITH_BOS = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
WITHOUT = "{% for m in messages %}{{ m.content }}{% endfor %}"
PIECES = ["▁", "a", "b", "▁a", "▁b", "ab"]


def llama(**settings: Any) -> LlamaTokenizer:
    vocab = {piece: n for n, piece in enumerate(["<unk>", "<s>", "</s>", *PIECES])}
    return LlamaTokenizer(vocab=vocab, merges=[("▁", "a"), ("▁", "b"), ("a", "b")], **settings)


def gemma() -> GemmaTokenizer:
    vocab = {p: n for n, p in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", *PIECES])}
    return GemmaTokenizer(vocab=vocab, merges=[("▁", "a")], add_bos_token=True)


def qwen() -> Qwen2Tokenizer:
    vocab = {piece: n for n, piece in enumerate(["<|endoftext|>", "a", "b", "Ġ", "ab"])}
    return Qwen2Tokenizer(vocab=vocab, merges=[("a", "b")])


def two_marks() -> PreTrainedTokenizerFast:
    """Puts two tokens before a text, as GLM does, and one behind it."""
    words = {word: n for n, word in enumerate(["[gMASK]", "<sop>", "<eop>", "a", "b"])}
    model = Tokenizer(WordLevel(words, unk_token="a"))
    model.pre_tokenizer = WhitespaceSplit()
    model.post_processor = TemplateProcessing(
        single="[gMASK] <sop> $A <eop>",
        special_tokens=[(name, words[name]) for name in ("[gMASK]", "<sop>", "<eop>")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=model, additional_special_tokens=["[gMASK]", "<sop>", "<eop>"]
    )


def tokens(tokenizer: Any, text: str, template: str | None = None) -> list[str]:
    tokenizer.chat_template = template
    record = PromptRecord(0, [{"role": "user", "content": text}], "2", "sums", {})
    (prompt,) = tokenize_prompts(
        [record], tokenizer, max_prompt_length=50, apply_chat_template=template is not None
    ).prompts
    return tokenizer.convert_ids_to_tokens(prompt.token_ids)


@pytest.mark.parametrize(
    ("tokenizer", "bos"),
    [
        (llama(add_bos_token=True), "<s>"),
        (llama(add_bos_token=True, add_eos_token=True), "<s>"),
        (gemma(), "<bos>"),
    ],
)
def test_tokenize_begins_with_one_bos_where_the_family_does(tokenizer: Any, bos: str) -> None:
    plain = tokens(tokenizer, "ab b")
    assert plain[0] == bos
    assert plain.count(bos) == 1
    assert tokenizer.eos_token not in plain
    # As transformers frames it, apart from an end.
    framed = tokenizer.convert_ids_to_tokens(tokenizer("ab b")["input_ids"])
    assert framed[: len(plain)] == plain
    written = tokenizer(f"{bos}ab b", add_special_tokens=False)["input_ids"]
    written = tokenizer.convert_ids_to_tokens(written)
    for begun in (f"{bos}ab b", f"{bos}{bos}ab b"):
        assert tokens(tokenizer, begun) == written
        assert tokens(tokenizer, begun, WITH_BOS) == written
        assert tokens(tokenizer, begun, WITHOUT) == written
    assert tokens(tokenizer, "ab b", WITH_BOS) == written
    assert bos not in tokens(tokenizer, "ab b", WITHOUT)


def test_tokenize_keeps_bos_inside_of_a_text() -> None:
    assert tokens(llama(add_bos_token=True), "a<s>b").count("<s>") == 2


def test_tokenize_adds_no_bos_to_families_without() -> None:
    ids = qwen()("ab b")["input_ids"]
    assert tokens(qwen(), "ab b") == qwen().convert_ids_to_tokens(ids)
    assert tokens(qwen(), "ab b", WITHOUT) == tokens(qwen(), "ab b")
    assert tokens(qwen(), "<|endoftext|>ab").count("<|endoftext|>") == 1


def test_tokenize_doubles_no_beginning_and_adds_no_end() -> None:
    expected = ["[gMASK]", "<sop>", "a", "b"]
    assert tokens(two_marks(), "a b") == expected
    assert tokens(two_marks(), "[gMASK] <sop> a b") == expected
