"""A search over documents of a file that the policy calls.

    <tool_call>{"name": "search", "arguments": {"query": "capital of France"}}</tool_call>

is answered with the documents that match best by BM25, as the library bm25s computes it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_resrl.rollout.environments.packages import import_package
from megatron_resrl.rollout.environments.tool_calls import (
    Role,
    ToolEnvironment,
    shortened,
    text_argument,
)


@dataclass(frozen=True)
class Document:
    """A line of the file."""

    text: str
    title: str = ""

    def __str__(self) -> str:
        return f"{self.title}\n{self.text}" if self.title else self.text


class Index:
    """BM25 over documents: Lucene's variant, k1 = 1.5, b = 0.75, words in lower case, without the
    most common English ones."""

    def __init__(self, documents: list[Document]) -> None:
        """
        Args:
            documents: At least one.

        Raises:
            MissingPackage: bm25s is not installed.
        """
        bm25s = import_package("bm25s", extra="search")
        self._documents = documents
        self._words = functools.partial(
            bm25s.tokenize, stopwords="en", return_ids=False, show_progress=False
        )
        self._bm25 = bm25s.BM25()
        self._bm25.index(self._words([str(each) for each in documents]), show_progress=False)

    def find(self, query: str, count: int) -> list[Document]:
        """The documents that match best, the best first; of equal ones the earlier.

        Args:
            query: Words.
            count: At most so many.
        """
        known = [word for word in self._words([query])[0] if word in self._bm25.vocab_dict]
        if not known:
            return []
        scores = self._bm25.get_scores(known)
        best = np.argsort(-scores, kind="stable")[:count]
        return [self._documents[place] for place in best if scores[place] > 0]


class SearchTool:
    """Finds documents of a file."""

    name = "search"
    form = '{"query": "..."}'

    def __init__(self, documents: str, top_k: int = 3, max_characters: int = 1000) -> None:
        """
        Args:
            documents: File of JSON lines, each with `text` and perhaps `title`.
            top_k: Documents of a result.
            max_characters: Of each; the middle of a longer one is left out.

        Raises:
            ValueError: The file cannot be read, or a number is below 1.
            MissingPackage: bm25s is not installed.
        """
        for name, value in (("top_k", top_k), ("max_characters", max_characters)):
            if value < 1:
                raise ValueError(f"{name} is {value}; give at least 1")
        self._top_k = top_k
        self._limit = max_characters
        self._index = _index(str(Path(documents).expanduser().resolve()))

    def run(self, arguments: Mapping[str, Any]) -> str:
        """The best documents for the argument `query`, numbered.

        Raises:
            ValueError: There is no query.
        """
        found = self._index.find(text_argument(arguments, "query"), self._top_k)
        texts = [shortened(str(each), self._limit) for each in found]
        numbered = (f"[{number}] {text}" for number, text in enumerate(texts, start=1))
        return "\n".join(numbered) or "no document matches"


class Search(ToolEnvironment):
    """The environment whose only tool is the search."""

    def __init__(
        self, documents: str, role: Role = "tool", top_k: int = 3, max_characters: int = 1000
    ) -> None:
        """
        Args:
            documents: See `SearchTool`.
            role: Who says the results, for chat templates that know no tools: user.
            top_k: See `SearchTool`.
            max_characters: See `SearchTool`.
        """
        super().__init__([SearchTool(documents, top_k, max_characters)], role)


def read_documents(file: Path) -> list[Document]:
    """The documents of a file of JSON lines.

    Raises:
        ValueError: It cannot be read, holds none, or a line is no document.
    """
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # JSON may hold other ends of lines.
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"documents {str(file)!r} cannot be read: {error}") from error
    documents = [_document(line, f"{file}:{n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not documents:
        raise ValueError(f"documents {str(file)!r} has no line; give a document on each")
    return documents


@functools.cache
def _index(file: str) -> Index:
    """One for each process: all episodes share it."""
    return Index(read_documents(Path(file)))


def _document(line: str, place: str) -> Document:
    form = 'give {"text": "...", "title": "..."} with or without the title'
    try:
        row = json.loads(line)
    except ValueError:
        raise ValueError(f"{place} is not JSON; {form}") from None
    text, title = (row.get("text"), row.get("title", "")) if isinstance(row, dict) else (None, "")
    if not isinstance(text, str) or not text.strip() or not isinstance(title, str):
        raise ValueError(f"{place} is no document; {form}")
    return Document(text, title)
