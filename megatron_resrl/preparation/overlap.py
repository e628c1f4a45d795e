"""Which questions are the same, or nearly so."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

K = TypeVar("K")
Gram = tuple[str, ...]
GRAM_WORDS = 3
"""Words of a gram; fewer where a text has fewer."""

_WORD = re.compile(r"[a-z]+|\d+|[^\W\d_]")
"""Letters of other alphabets are words of their own: some scripts set no space between words."""


def normalised(text: str) -> str:
    """A text without what copies of it differ in: case, punctuation, space, kinds of letters.

    Only letters and digits are left, or the text itself if it has none. So `2n+1` and `2n-1` are
    the same: what depends on that has to compare answers too.
    """
    return "".join(filter(str.isalnum, _plain(text))) or text


def grams(text: str) -> frozenset[Gram]:
    """All runs of `GRAM_WORDS` words of a text, without case and punctuation."""
    words = _WORD.findall(_plain(text))
    length = max(1, min(GRAM_WORDS, len(words)))
    return frozenset(
        tuple(words[start : start + length]) for start in range(len(words) - length + 1)
    )


def jaccard(first: frozenset[Gram], second: frozenset[Gram]) -> float:
    """The share of all grams of two texts that both have."""
    common = len(first & second)
    return common / ((len(first) + len(second) - common) or 1)


class NearIndex(Generic[K]):
    """Finds the text that shares most grams with another, if that is at least a threshold.

    The answer is exact, and every comparison is with few texts: two sets with a Jaccard index of
    t have one of the rarest `n - ceil(t n) + 1` grams of each in common (prefix filter:
    Chaudhuri et al., ICDE 2006; Bayardo et al., WWW 2007).

    Args:
        threshold: Above 0, at most 1.
        frequency: How often a gram comes among all texts; sorts them, and decides nothing else.
    """

    def __init__(self, threshold: float, frequency: Mapping[Gram, int]) -> None:
        self._threshold, self._frequency = threshold, frequency
        self._keys: list[K] = []
        self._texts: list[frozenset[Gram]] = []
        self._with: defaultdict[Gram, list[int]] = defaultdict(list)

    def add(self, key: K, text: frozenset[Gram]) -> None:
        """Adds a text; of texts that are equally near, the first one added is found."""
        for gram in self._rarest(text):
            self._with[gram].append(len(self._texts))
        self._keys.append(key)
        self._texts.append(text)

    def nearest(self, text: frozenset[Gram]) -> tuple[K, float] | None:
        """The key of the nearest text and its Jaccard index; None: no text is near."""
        numbers = {each for gram in self._rarest(text) for each in self._with.get(gram, ())}
        best, nearest = 0.0, -1
        for number in sorted(numbers):
            similarity = jaccard(text, self._texts[number])
            if similarity >= self._threshold and similarity > best:
                best, nearest = similarity, number
        return None if nearest < 0 else (self._keys[nearest], best)

    def _rarest(self, text: frozenset[Gram]) -> list[Gram]:
        # Rounding must not make the prefix too short.
        wanted = math.ceil(self._threshold * len(text) - 1e-9)
        ordered = sorted(text, key=lambda gram: (self._frequency.get(gram, 0), gram))
        return ordered[: len(text) - wanted + 1]


def frequencies(texts: Iterable[frozenset[Gram]]) -> Counter[Gram]:
    """How many texts have each gram."""
    return Counter(gram for text in texts for gram in text)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
