"""Text to token files of megatron-core: in parallel, resumable, with the same bytes every time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy
import tokenizers
from megatron.core.datasets.indexed_dataset import DType

from megatron_resrl.corpus.encoding import Counts, DocumentFormat, EncodedShard, Encoder
from megatron_resrl.corpus.manifest import Manifest, vocabulary_digest, vocabulary_size
from megatron_resrl.corpus.processes import encode_shards
from megatron_resrl.corpus.read_back import compare_documents, read_back
from megatron_resrl.corpus.text_files import Shard, TextDocuments, read_shards, text_files
from megatron_resrl.corpus.unfinished import UnfinishedFiles
from megatron_resrl.data.tokenizer import read_tokenizer
from megatron_resrl.errors import InputError
from megatron_resrl.observe.progress import ByteProgress
from megatron_resrl.platform.disk import report_full_disk


@dataclass(frozen=True)
class PreprocessReport:
    """What became of the text."""

    prefix: str
    """Path of the .bin and .idx files without these endings."""
    files: int
    counts: Counts
    dtype: str
    vocab_size: int
    resumed: int
    """Documents that an interrupted process had finished."""
    ids_read: int
    """Token ids that were read back and compared with the vocabulary."""
    compared: int
    """Documents that were tokenized again one by one, and were equal."""
    seconds: float
    text_bytes: int
    """Of this process alone."""

    @property
    def megabytes_per_second(self) -> float:
        """10^6 bytes of text per second."""
        return self.text_bytes / self.seconds / 1e6

    def __str__(self) -> str:
        counts = self.counts
        average = counts.text_bytes / max(counts.tokens, 1)
        lines = [
            f"{self.files} files -> {self.prefix}.bin, {self.prefix}.idx",
            f"documents    {counts.documents:,}",
            f"left out     {counts.empty:,} empty, {counts.unreadable:,} unreadable",
            f"tokens       {counts.tokens:,} ({self.dtype}, {average:.2f} bytes of text each)",
            f"checked      {self.ids_read:,} token ids read back, all below {self.vocab_size:,}; "
            f"{self.compared} documents tokenized again",
            f"time         {self.seconds:.1f} s, {self.megabytes_per_second:.1f} MB/s",
        ]
        if self.resumed:
            lines.insert(1, f"went on      after {self.resumed:,} documents of an earlier run")
        return "\n".join(lines)


def preprocess_data(  # noqa: PLR0913, one for each option of the command
    input: list[str],
    output_prefix: str,
    tokenizer: str,
    text_key: str = "text",
    text_documents: TextDocuments = "file",
    append_eod: bool = True,
    prepend_bos: bool = False,
    unreadable: Literal["stop", "drop"] = "stop",
    workers: int | None = None,
    force: bool = False,
) -> PreprocessReport:
    """Writes text as token files that megatron-core's IndexedDataset reads.

    The result depends on the text, the tokenizer and the options alone, not on `workers` or
    interruptions. An interrupted command goes on where it was when it is given again.

    Args:
        input: Files, folders or patterns: .jsonl, .json (an object per line), .txt, each also
            with .gz or .zst, and .parquet.
        output_prefix: Writes <output_prefix>_<text_key>_document.bin, .idx and .json.
        tokenizer: Directory of a Hugging Face tokenizer.
        text_key: Column of the text in .jsonl and .parquet; a.b is field b of column a.
        text_documents: What is one document of a .txt file: file, line or blank_line (what stands
            between blank lines).
        append_eod: End each document with the tokenizer's eos_token.
        prepend_bos: Begin each document with the tokenizer's bos_token.
        unreadable: What to do about a document that cannot be read: stop or drop.
        workers: Processes that tokenize; default: one per core.
        force: Replace finished files, and unfinished work with other options.

    Raises:
        InputError: An option or a file cannot be used.
        RunError: A process died, or what was written is not what was meant.
    """
    began = time.monotonic()
    count = _worker_count(workers)
    files = text_files(input)
    loaded = _tokenizer(tokenizer)
    ends = _special_ids(loaded, append_eod, prepend_bos)
    form = DocumentFormat(text_key, text_documents, *ends, drop_unreadable=unreadable == "drop")
    vocab_size = vocabulary_size(loaded)
    dtype = numpy.dtype(DType.optimal_dtype(vocab_size))
    prefix = Path(f"{output_prefix}_{text_key}_document")
    plan = _plan(files, loaded, form)
    with (
        UnfinishedFiles(prefix, plan, dtype, force=force) as unfinished,
        report_full_disk(prefix.parent, 0),
    ):
        earlier = unfinished.state.counts
        shards = read_shards(files, text_key, text_documents, unfinished.state.position)
        _write(unfinished, encode_shards(shards, loaded, form, dtype, count), files)
        counts = unfinished.state.counts
        if counts.documents == 0:
            raise InputError(f"--input holds no text: {counts.empty} documents, all of them empty")
        unfinished.write_index()
        written = unfinished.tokens_prefix
        ids_read = read_back(written, counts, vocab_size)
        compared = sum(
            compare_documents(written, files, file, document, Encoder(loaded), form)
            for file, document in sorted({(0, 0), unfinished.state.newest_file})
        )
        unfinished.publish(_manifest(tokenizer, loaded, files, form, counts))
    return PreprocessReport(
        prefix=str(prefix),
        files=len(files),
        counts=counts,
        dtype=dtype.name,
        vocab_size=vocab_size,
        resumed=earlier.documents,
        ids_read=ids_read,
        compared=compared,
        seconds=time.monotonic() - began,
        text_bytes=counts.text_bytes - earlier.text_bytes,
    )


def _tokenizer(path: str) -> Any:
    if not Path(path).is_dir():
        raise InputError(
            f"--tokenizer {path}: there is no such directory; give the one of a Hugging Face "
            "tokenizer, which tools/train_tokenizer.py makes"
        )
    return read_tokenizer("--tokenizer", path)


def _special_ids(
    tokenizer: Any, append_eod: bool, prepend_bos: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids before and behind each document."""
    for wanted, name, option in (
        (append_eod, "eos_token", "--append_eod"),
        (prepend_bos, "bos_token", "--prepend_bos"),
    ):
        if wanted and getattr(tokenizer, f"{name}_id") is None:
            raise InputError(
                f"--tokenizer {tokenizer.name_or_path} has no {name}; give {option} false, or "
                "another tokenizer"
            )
    beginning = (tokenizer.bos_token_id,) if prepend_bos else ()
    return beginning, (tokenizer.eos_token_id,) if append_eod else ()


def _plan(files: Sequence[Path], tokenizer: Any, form: DocumentFormat) -> dict[str, Any]:
    """What decides about the bytes that are written, by the name of the option."""
    stats = [(str(file.absolute()), file.stat()) for file in files]
    described = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
    pipeline = [vocabulary_digest(tokenizer), tokenizers.__version__]
    if tokenizer.is_fast:
        pipeline.append(tokenizer.backend_tokenizer.to_str())
    return {
        "input": hashlib.sha256(json.dumps(described).encode()).hexdigest(),
        "tokenizer": hashlib.sha256(json.dumps(pipeline).encode()).hexdigest(),
        "text_key": form.text_key,
        "text_documents": form.text_documents,
        "append_eod": list(form.end),
        "prepend_bos": list(form.beginning),
    }


def _manifest(
    path: str, tokenizer: Any, files: Sequence[Path], form: DocumentFormat, counts: Counts
) -> Manifest:
    vocab_size = vocabulary_size(tokenizer)
    return Manifest(
        tokenizer=path,
        vocabulary_sha256=vocabulary_digest(tokenizer),
        vocab_size=vocab_size,
        bos_id=form.beginning[0] if form.beginning else None,
        eod_id=form.end[0] if form.end else None,
        dtype=numpy.dtype(DType.optimal_dtype(vocab_size)).name,
        text_key=form.text_key,
        text_documents=form.text_documents,
        documents=counts.documents,
        tokens=counts.tokens,
        empty_documents=counts.empty,
        unreadable_documents=counts.unreadable,
        text_bytes=counts.text_bytes,
        inputs=[{"path": str(file), "bytes": file.stat().st_size} for file in files],
    )


def _worker_count(workers: int | None) -> int:
    if workers is not None and workers < 1:
        raise InputError(f"--workers is {workers}; it must be at least 1")
    return workers or len(os.sched_getaffinity(0))


def _write(
    unfinished: UnfinishedFiles,
    results: Generator[tuple[Shard, EncodedShard], None, None],
    files: Sequence[Path],
) -> None:
    began, earlier = time.monotonic(), unfinished.state.counts
    total = sum(file.stat().st_size for file in files)
    progress: ByteProgress | None = None
    with contextlib.closing(results), contextlib.ExitStack() as stack:
        for shard, encoded in results:
            unfinished.append(shard, encoded)
            if progress is None:
                progress = ByteProgress(total, start=shard.disk_bytes)
                stack.callback(progress.close)
            for complaint in encoded.complaints:
                progress.message(f"left out: {complaint}")
            counts = unfinished.state.counts
            speed = (counts.text_bytes - earlier.text_bytes) / (time.monotonic() - began) / 1e6
            headline = f"{counts.documents:,} documents, {counts.tokens:,} tokens, {speed:.1f} MB/s"
            progress.update(shard.disk_bytes, headline)
