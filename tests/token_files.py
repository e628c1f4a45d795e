"""Token files as Megatron-LM writes them: megatron-core's builder in a plain loop."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy
import pyarrow
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


def build(
    prefix: Path, documents: Iterable[Sequence[int]], vocab_size: int, *, split: int = 1
) -> Path:
    """Writes documents, each in `split` sequences of about the same length; returns the prefix."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(vocab_size))
    for document in documents:
        lengths = [len(part) for part in numpy.array_split(numpy.array(document), split)]
        builder.add_document(document, lengths)
    builder.finalize(f"{prefix}.idx")
    return prefix


def save_tokenizer(folder: Path, **options: str) -> Path:
    """Saves a byte-level tokenizer with a few merges, which encodes any text; returns the folder.

    Args:
        folder: Created.
        options: Of the tokenizer, such as `bos_token`; `eos_token` is `</s>` unless it is given.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    options = {"eos_token": "</s>"} | options
    trainer = BpeTrainer(
        vocab_size=280,
        special_tokens=list(options.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the rest of the text is that text " * 9], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options).save_pretrained(folder)
    return folder


def build_from_texts(
    prefix: Path, texts: Iterable[str], tokenizer: PreTrainedTokenizerBase
) -> Path:
    """Writes texts as Megatron-LM's preprocessing does, each with an end of document."""
    encoded = (tokenizer.encode(text, add_special_tokens=False) for text in texts)
    documents = [[*ids, tokenizer.eos_token_id] for ids in encoded]
    return build(prefix, documents, len(tokenizer))


def same_bytes(first: Path, second: Path) -> bool:
    """Whether two prefixes name token files with the same content."""
    return all(
        Path(f"{first}{ending}").read_bytes() == Path(f"{second}{ending}").read_bytes()
        for ending in (".bin", ".idx")
    )


def zstd(data: bytes) -> bytes:
    """Compressed data."""
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def write_lines(path: Path, texts: list[str]) -> str:
    """Writes a .jsonl file with a text per line; returns its path."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)
