"""Checks of token files that were just written: are they what they should be?"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron_resrl.corpus.dataset import check_indexed_dataset
from megatron_resrl.corpus.encoding import Counts, DocumentFormat, Encoder, is_blank
from megatron_resrl.corpus.text_files import Position, read_shards, read_texts
from megatron_resrl.errors import InputError, RunError

_COMPARED = 8
"""Documents at the beginning of a file that are tokenized once more."""


def read_back(prefix: Path, counts: Counts, vocab_size: int) -> int:
    """Reads the files back; returns how many token ids were compared with the vocabulary."""
    try:
        facts = check_indexed_dataset(prefix, vocab_size)
    except InputError as error:
        raise RunError(f"what was written cannot be read back: {error}") from error
    if (facts.documents, facts.tokens) != (counts.documents, counts.tokens):
        raise RunError(
            f"{prefix} holds {facts.documents} documents of {facts.tokens} tokens instead of "
            f"{counts.documents} of {counts.tokens}; delete {prefix.parent} and begin anew"
        )
    return facts.ids_read


def compare_documents(
    prefix: Path,
    files: Sequence[Path],
    file: int,
    document: int,
    encoder: Encoder,
    form: DocumentFormat,
) -> int:
    """Tokenizes the first documents of a file again, one by one, and compares.

    Args:
        prefix: Of the token files.
        files: All input.
        file: Number of the file.
        document: Number of the file's first document in the token files.
        encoder: See `Encoder.one`.
        form: How documents were made.

    Returns:
        How many documents were equal.

    Raises:
        RunError: A document differs.
    """
    written = IndexedDataset(str(prefix))
    shards = read_shards(files, form.text_key, form.text_documents, Position(file))
    texts = read_texts(next(shards), form.text_key, lambda error: None)
    filled = ((where, text) for where, text in texts if not is_blank(text))
    encoded = ((where, encoder.one(text)) for where, text in filled)
    compared = 0
    for where, ids in itertools.islice(((where, ids) for where, ids in encoded if ids), _COMPARED):
        found = written[document + compared].tolist()
        if found != [*form.beginning, *ids, *form.end]:
            raise RunError(
                f"document {document + compared} of {prefix} differs from the tokens of its text, "
                f"{where}; was the file changed meanwhile? Delete {prefix.parent} and begin anew"
            )
        compared += 1
    return compared
