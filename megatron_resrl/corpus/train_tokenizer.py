"""Tokenizers trained on text, as directories that transformers loads."""

from __future__ import annotations

import io
import itertools
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from megatron_resrl.corpus.chat_template import chat_template as named_template
from megatron_resrl.corpus.chat_template import check_chat_template, markers
from megatron_resrl.corpus.text_files import TextDocuments, read_shards, read_texts, text_files
from megatron_resrl.errors import InputError
from megatron_resrl.platform.new_directory import atomic_directory

_BOS, _PAD, _UNK = "<s>", "<pad>", "<unk>"
_SPACE = "\u2581"
"""What sentencepiece writes for a blank."""
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Byte-level BPE merges nothing across these borders; digits stand alone. Source: Qwen2."""
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")

_CHECKED_LINES = 10_000
_SIZE_BYTES = 64 << 20
"""Room on the disk that a tokenizer may take."""
_HIGHEST = re.compile(r"set it to a value <= (\d+)")
_LOWEST = re.compile(r"smaller than required_chars. \d+ vs (\d+)")


@dataclass(frozen=True)
class TokenizerReport:
    """What a tokenizer makes of the text that it was trained on."""

    output: str
    kind: str
    vocab_size: int
    text_bytes: int
    """Of the text that it was trained on."""
    lines: int
    """That were encoded and decoded."""
    changed: int
    """Lines that came back changed."""
    first_changed: str
    """Where the first of them stands; empty: none."""
    bytes_per_token: float
    unknown: float
    """Share of tokens that stand for text that the vocabulary lacks."""
    single_bytes: float
    """Share of tokens that are one byte of a character that the vocabulary lacks."""
    eos_token: str
    marks_answers: bool
    """Whether the chat template marks what the assistant generates."""
    seconds: float

    def __str__(self) -> str:
        came_back = f"{self.lines:,} lines decoded again, "
        came_back += f"{self.changed:,} changed (first: {self.first_changed})" * (self.changed > 0)
        came_back += "all unchanged" * (self.changed == 0)
        template = "marks" if self.marks_answers else "does not mark"
        return "\n".join(
            [
                f"{self.kind} tokenizer -> {self.output}",
                f"vocabulary   {self.vocab_size:,} tokens, end of sequence {self.eos_token}",
                f"trained on   {self.text_bytes / 1e6:.1f} MB in {self.seconds:.1f} s",
                f"round trip   {came_back}",
                f"tokens       {self.bytes_per_token:.2f} bytes each, {self.unknown:.2%} unknown, "
                f"{self.single_bytes:.2%} single bytes",
                f"template     {template} what the assistant generates",
            ]
        )


@dataclass
class _Corpus:
    """The beginning of each file, the same at every reading."""

    files: Sequence[Path]
    text_key: str
    text_documents: TextDocuments
    bytes_per_file: float
    text_bytes: int = 0
    """UTF-8 of the texts, known when they have been read to the end."""

    def texts(self) -> Iterator[tuple[str, str]]:
        """Documents, each with where it stands."""
        total = 0
        for file in self.files:
            size = 0
            for where, text in self._texts_of(file):
                yield where, text
                size += len(text.encode())
                if size >= self.bytes_per_file:
                    break
            total += size
        self.text_bytes = total

    def lines(self) -> Iterator[tuple[str, str]]:
        """Lines that are not blank, each with where its document stands."""
        for where, text in self.texts():
            yield from ((where, line) for line in text.split("\n") if line.strip())

    def _texts_of(self, file: Path) -> Iterator[tuple[str, str]]:
        def unreadable(error: InputError) -> None:
            raise error

        for shard in read_shards([file], self.text_key, self.text_documents):
            yield from read_texts(shard, self.text_key, unreadable)


def train_tokenizer(  # noqa: PLR0913, one for each option of the command
    input: list[str],
    output: str,
    kind: Literal["sentencepiece", "bpe"],
    vocab_size: int,
    chat_template: str = "chatml",
    eos_token: str | None = None,
    special_tokens: list[str] | None = None,
    text_key: str = "text",
    text_documents: TextDocuments = "file",
    train_bytes: float = 1e9,
    force: bool = False,
) -> TokenizerReport:
    """Trains a tokenizer on text and writes it as a directory that transformers loads.

    The same text and options give the same files.

    Args:
        input: Files, folders or patterns, as for tools/preprocess_data.py.
        output: Directory to write.
        kind: sentencepiece (BPE with byte fallback, as Llama 2 has it; also writes
            tokenizer.model), or bpe (byte-level BPE, as GPT-2, Llama 3 and Qwen have it).
        vocab_size: Tokens, special ones included.
        chat_template: chatml, or a file with a Jinja template. What looks like <|...|> in it
            becomes a special token.
        eos_token: Ends a sequence, and each document of tools/preprocess_data.py; default:
            <|im_end|> for chatml, otherwise </s>.
        special_tokens: Further special tokens.
        text_key: Column of the text in .jsonl and .parquet.
        text_documents: What is one document of a .txt file: file, line or blank_line.
        train_bytes: Text that is read for training, the same share of it from the beginning of
            each file; sentencepiece holds it in memory.
        force: Replace an existing output.

    Raises:
        InputError: An option or a file cannot be used, or the text gives another number of tokens.
    """
    began = time.monotonic()
    files = text_files(input)
    if train_bytes <= 0:
        raise InputError(f"--train_bytes is {train_bytes:g}; it must be above 0")
    template, default_eos = named_template(chat_template)
    corpus = _Corpus(files, text_key, text_documents, train_bytes / len(files))
    eos_token = eos_token or default_eos
    if eos_token in (_BOS, _PAD, _UNK):
        raise InputError(f"--eos_token is {eos_token}, which has another meaning; give another")
    first = [_BOS, eos_token, _PAD]
    special = [*dict.fromkeys([*first, *markers(template), *(special_tokens or ())])]
    with atomic_directory(Path(output), sources=files, force=force, needed=_SIZE_BYTES) as folder:
        if kind == "sentencepiece":
            special = [_UNK, *special]
            model = _train_sentencepiece(corpus, vocab_size, special)
            (folder / "tokenizer.model").write_bytes(model)
            trained = _from_sentencepiece(model, special)
        else:
            trained = _train_bpe(corpus, vocab_size, special)
        _save(trained, folder, template, eos_token, has_unknown=kind == "sentencepiece")
        # What users will load, and not what is in memory.
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        marks_answers = check_chat_template(tokenizer)
        quality = _round_trip(tokenizer, corpus)
        return TokenizerReport(
            output=output,
            kind=kind,
            vocab_size=len(tokenizer),
            text_bytes=corpus.text_bytes,
            eos_token=eos_token,
            marks_answers=marks_answers,
            seconds=time.monotonic() - began,
            **quality,
        )


def _train_sentencepiece(corpus: _Corpus, vocab_size: int, special: Sequence[str]) -> bytes:
    """The content of tokenizer.model. Special tokens get the first ids, in their order."""
    try:
        import sentencepiece
    except ImportError:
        raise InputError(
            "--kind sentencepiece needs the library: pip install megatron-resrl[sentencepiece]"
        ) from None
    model = io.BytesIO()
    unk, bos, eos, pad, *further = special
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for _, line in corpus.lines()),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            # As Llama 2: bytes for what the vocabulary lacks, digits alone, text as it is.
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            # Unlike it: text behind a special token is cut as it is alone.
            add_dummy_prefix=False,
            max_sentence_length=1 << 24,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            unk_piece=unk,
            bos_piece=bos,
            eos_piece=eos,
            pad_piece=pad,
            control_symbols=further,
            # Part of the file, which must not depend on the machine.
            num_threads=16,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _wrong_size(vocab_size, str(error)) from error
    return model.getvalue()


def _wrong_size(vocab_size: int, message: str) -> InputError:
    """What sentencepiece's error means."""
    if found := _HIGHEST.search(message):
        return InputError(
            f"--vocab_size is {vocab_size}, and --input gives no more than {found[1]} tokens; give "
            f"{found[1]} or less, or more text"
        )
    if found := _LOWEST.search(message):
        return InputError(
            f"--vocab_size is {vocab_size}, and special tokens, bytes and characters alone take "
            f"{found[1]}; give more"
        )
    return InputError(f"sentencepiece cannot train with --vocab_size {vocab_size}: {message}")


def _from_sentencepiece(model: bytes, special: Sequence[str]) -> Tokenizer:
    """The same tokenizer for the tokenizers library: the same ids for any text without the special
    tokens themselves."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [processor.id_to_piece(number) for number in range(processor.get_piece_size())]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    mergeable = {
        piece
        for number, piece in enumerate(pieces)
        if not (processor.is_control(number) or processor.is_byte(number))
        and not processor.is_unknown(number)
    }
    # sentencepiece joins the two neighbours whose union has the lowest id, however it is divided.
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces
        if piece in mergeable
        for cut in range(1, len(piece))
        if piece[:cut] in mergeable and piece[cut:] in mergeable
    ]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token=_UNK, fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([_added(token) for token in special])
    return tokenizer


def _train_bpe(corpus: _Corpus, vocab_size: int, special: Sequence[str]) -> Tokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(special) + len(alphabet):
        raise InputError(
            f"--vocab_size is {vocab_size}, and special tokens and bytes alone take "
            f"{len(special) + len(alphabet)}; give more"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[_added(token) for token in special],
        initial_alphabet=sorted(alphabet),
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator((text for _, text in corpus.texts()), trainer)
    if (found := tokenizer.get_vocab_size()) != vocab_size:
        raise InputError(
            f"--vocab_size is {vocab_size}, and --input gives no more than {found} tokens; give "
            f"{found} or less, or more text"
        )
    return tokenizer


def _added(token: str) -> AddedToken:
    return AddedToken(token, special=True, normalized=False)


def _save(
    trained: Tokenizer, folder: Path, template: str, eos_token: str, *, has_unknown: bool
) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained,
        bos_token=_BOS,
        eos_token=eos_token,
        pad_token=_PAD,
        clean_up_tokenization_spaces=False,
        **({"unk_token": _UNK} if has_unknown else {}),
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    # The class's name of transformers 4, which 5 reads as well.
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _round_trip(tokenizer: Any, corpus: _Corpus) -> dict[str, Any]:
    """Encodes and decodes lines from the beginning of the text."""
    lines = changed = tokens = size = unknown = single = 0
    first_changed = ""
    byte_ids = {number for token, number in tokenizer.get_vocab().items() if _BYTE.fullmatch(token)}
    for where, line in itertools.islice(corpus.lines(), _CHECKED_LINES):
        ids = tokenizer.encode(line, add_special_tokens=False, verbose=False)
        lines += 1
        if tokenizer.decode(ids) != line:
            changed += 1
            first_changed = first_changed or where
        tokens += len(ids)
        size += len(line.encode())
        unknown += ids.count(tokenizer.unk_token_id)
        single += sum(each in byte_ids for each in ids)
    return {
        "lines": lines,
        "changed": changed,
        "first_changed": first_changed,
        "bytes_per_token": size / max(tokens, 1),
        "unknown": unknown / max(tokens, 1),
        "single_bytes": single / max(tokens, 1),
    }
