"""Which texts are the same or near, against the Jaccard index of all pairs."""

from __future__ import annotations

import random

import pytest

from megatron_resrl.preparation.overlap import NearIndex, frequencies, grams, jaccard, normalised


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Find $x$ if $x^2 = 4$.", "find x, if x^2=4"),
        ("Die Straße ½", "DIE STRASSE 1\u20442"),
        ("In triangle $ABC$,\nfind it.", "In triangle ABC, find it"),
    ],
)
def test_normalised_is_equal_for_copies(first: str, second: str) -> None:
    assert normalised(first) == normalised(second)


def test_normalised_keeps_what_questions_differ_in() -> None:
    assert normalised("the 12th prime") != normalised("the 13th prime")
    assert normalised("+?") != normalised("-?")  # Without letters, texts stay as they are.


def test_grams_are_runs_of_three_words() -> None:
    assert grams("One, two THREE four") == {("one", "two", "three"), ("two", "three", "four")}
    assert grams("Two words") == {("two", "words")}
    assert grams("求 x 的值") == {("求", "x", "的"), ("x", "的", "值")}
    assert grams("") == frozenset()


def test_jaccard_is_the_share_of_common_grams() -> None:
    # 4 grams each, 3 of them common: 3 / 5.
    assert jaccard(grams("a b c d e f"), grams("a b c d e g")) == pytest.approx(3 / 5)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 1.0])
def test_near_index_finds_what_all_comparisons_find(threshold: float) -> None:
    """Of texts that are changed copies of each other, with common and rare words."""
    draw = random.Random(7)
    texts = []
    for _ in range(120):
        words = draw.choices("abcdefgh", k=draw.randint(1, 14))
        for _ in range(3):
            changed = list(words)
            changed[draw.randrange(len(changed))] = draw.choice("abcxyz")
            texts.append(" ".join(changed))
    sets = [grams(text) for text in texts]
    index: NearIndex[int] = NearIndex(threshold, frequencies(sets))
    for number, text in enumerate(sets):
        near = [(jaccard(text, other), -place) for place, other in enumerate(sets[:number])]
        best, place = max(near, default=(0.0, 0))
        expected = (-place, best) if best >= threshold else None
        assert index.nearest(text) == expected
        index.add(number, text)
