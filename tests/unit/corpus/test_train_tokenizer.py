"""Tokenizers trained on text: what transformers loads gives the text back, and marks answers."""

from __future__ import annotations

import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from megatron_resrl.corpus.train_tokenizer import TokenizerReport, train_tokenizer
from megatron_resrl.errors import InputError

SIZES = {"sentencepiece": 420, "bpe": 400}
MESSAGES = [
    {"role": "system", "content": "Count."},
    {"role": "user", "content": "How many?\n"},
    {"role": "assistant", "content": "Twelve.\n\nSee?"},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": ""},
]


def write_text(folder: Path) -> Path:
    """Lines of made-up words, numbers, indentation, and letters of two bytes."""
    chosen = random.Random(0)
    words = ["".join(chosen.choices("etaoinshrd\u00e4\u00df", k=5)) for _ in range(60)]
    lines = [
        "  " * chosen.randrange(3)
        + " ".join(chosen.choices(words, k=6))
        + f" {number},  x={number}"
        for number in range(400)
    ]
    path = folder / "text.txt"
    path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=SIZES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    train(folder, request.param)
    return folder


def train(folder: Path, kind: str, **options: Any) -> TokenizerReport:
    options = {"vocab_size": SIZES[kind], "output": str(folder / "tokenizer")} | options
    return train_tokenizer([str(write_text(folder))], kind=kind, **options)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581\0")))
@settings(max_examples=60)
def test_trained_tokenizer_gives_any_text_back(trained: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained / "tokenizer")
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert tokenizer(text).input_ids == ids  # No special token is added.


@pytest.mark.parametrize("kind", SIZES)
def test_train_tokenizer_repeats_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    report = train(tmp_path, kind)
    first = digests(tmp_path / "tokenizer")
    assert ("tokenizer.model" in first) == (kind == "sentencepiece")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")
    train(tmp_path, kind, force=True)
    assert digests(tmp_path / "tokenizer") == first
    assert (report.lines, report.changed, report.unknown) == (400, 0, 0)
    assert report.text_bytes == (tmp_path / "text.txt").stat().st_size
    assert 1.5 < report.bytes_per_token < 5
    assert "400 lines decoded again, all unchanged" in str(report)


def test_trained_tokenizer_has_its_special_tokens(trained: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained / "tokenizer")
    sentencepiece_kind = trained.name.startswith("sentencepiece")
    expected = ["<unk>"] * sentencepiece_kind
    expected += ["<s>", "<|im_end|>", "<pad>", "<|im_start|>"]
    assert tokenizer.convert_ids_to_tokens(range(len(expected))) == expected
    assert len(tokenizer) == SIZES["sentencepiece" if sentencepiece_kind else "bpe"]
    names = tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token
    assert names == ("<s>", "<|im_end|>", "<pad>")
    for token in expected:
        (number,) = tokenizer.encode(token, add_special_tokens=False)
        assert tokenizer.decode([number], skip_special_tokens=True) == ""


def test_chatml_marks_answers_with_their_end(trained: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained / "tokenizer")
    encoded = tokenizer.apply_chat_template(
        MESSAGES, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    masked = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    assert tokenizer.decode([number for number, mine in masked if mine]) == (
        "Twelve.\n\nSee?<|im_end|><|im_end|>"
    )
    assert tokenizer.decode(encoded["input_ids"]) == (
        "<|im_start|>system\nCount.<|im_end|>\n<|im_start|>user\nHow many?\n<|im_end|>\n"
        "<|im_start|>assistant\nTwelve.\n\nSee?<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n"
        "<|im_start|>assistant\n<|im_end|>\n"
    )
    # A prompt is the beginning of the whole conversation.
    prompt = tokenizer.apply_chat_template(
        MESSAGES[:4], tokenize=True, return_dict=False, add_generation_prompt=True
    )
    assert encoded["input_ids"][: len(prompt)] == prompt


@settings(max_examples=200)
@given(text=st.text(st.sampled_from("etaoinshrd\u00e4 012,=x\n\t\U0001f600aaeee"), max_size=60))
def test_sentencepiece_model_gives_the_same_ids(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "shared_sentencepiece"
    if not folder.exists():
        folder.mkdir()
        train(folder, "sentencepiece")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    model = str(folder / "tokenizer" / "tokenizer.model")
    processor = sentencepiece.SentencePieceProcessor(model_file=model)
    assert tokenizer.encode(text, add_special_tokens=False) == processor.encode(text)


def test_train_tokenizer_takes_a_template_of_the_users(tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|end|><|next|>"
    )
    report = train(
        tmp_path, "bpe", chat_template=str(template), special_tokens=["<|user|>", "<|assistant|>"]
    )
    assert (report.marks_answers, report.eos_token) == (False, "</s>")
    assert "does not mark what the assistant generates" in str(report)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    ids = tokenizer.apply_chat_template(MESSAGES[1:2], tokenize=True, return_dict=False)
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert (tokens[0], tokens[-2:]) == ("<|user|>", ["<|end|>", "<|next|>"])
    train(tmp_path, "bpe", chat_template=str(template), eos_token="<|next|>", force=True)
    assert AutoTokenizer.from_pretrained(tmp_path / "tokenizer").eos_token == "<|next|>"


def test_train_tokenizer_reads_the_beginning_of_each_file(tmp_path: Path) -> None:
    rows = [json.dumps({"body": letter * 100 + "\n" * 2}) + "\n" for letter in "abcdefgh" * 50]
    (tmp_path / "a.jsonl").write_text("".join(rows))
    (tmp_path / "b.jsonl").write_text("".join(rows[::-1]))
    options = {"kind": "bpe", "vocab_size": 264, "text_key": "body"}
    inputs = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    report = train_tokenizer(inputs, str(tmp_path / "out"), train_bytes=350, **options)
    assert report.text_bytes == 4 * 102
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert {token[0] for token in tokenizer.get_vocab() if token[0] * 2 == token} == set("abgh")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "many": ({"vocab_size": 10**6}, r"is 1000000, and --input gives no more than (\d+) tokens"),
    "few": ({"vocab_size": 100}, "is 100, and special tokens.* alone take "),
    "template": ({"chat_template": "none.jinja"}, "neither chatml nor a readable file"),
    "meaning": ({"eos_token": "<pad>"}, "--eos_token is <pad>, which has another meaning"),
    "nothing": ({"train_bytes": 0}, "--train_bytes is 0; it must be above 0"),
}


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("case", REFUSED)
def test_train_tokenizer_refuses_what_it_cannot_use(tmp_path: Path, kind: str, case: str) -> None:
    options, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        train(tmp_path, kind, **options)
    assert [path.name for path in tmp_path.iterdir()] in ([], ["text.txt"])


TEMPLATES = {
    "{% for m in messages %}{{ m.contents | upper }}{% endfor %}{{ raise_exception('no') }}": "no",
    "{% for m in messages %}{{ m.role }}{% endfor %}": "does not stand in the chat",
    "{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %}{{ m.content }}"
    "{% endfor %}": "does not stand between",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_train_tokenizer_refuses_wrong_templates(tmp_path: Path, template: str) -> None:
    (tmp_path / "template.jinja").write_text(template)
    with pytest.raises(InputError, match=f"--chat_template.*{TEMPLATES[template]}"):
        train(tmp_path, "bpe", chat_template=str(tmp_path / "template.jinja"))
    assert not (tmp_path / "tokenizer").exists()


def test_train_tokenizer_keeps_an_existing_output(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "mine").write_text("")
    with pytest.raises(InputError, match=r"is not empty; .* give --force"):
        train(tmp_path, "bpe")
    with pytest.raises(InputError, match="overlaps with --input"):
        train(tmp_path, "bpe", output=str(tmp_path), force=True)
