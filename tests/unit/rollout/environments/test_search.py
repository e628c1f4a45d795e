"""The search finds what BM25, written out here, finds; files that hold no documents are refused."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

pytest.importorskip("bm25s", reason="needs bm25s: pip install 'megatron-resrl[search]'")

from megatron_resrl.rollout.environments.search import Document, Index, Search, SearchTool

TEXTS = [
    "Paris capital France",
    "Berlin capital Germany, river Spree",
    "Spree river Berlin, Spree boats",
    "Lyon city France, Rhone river, Saone river",
    "Bread wine cheese",
]


def lucene_scores(query: str) -> list[float]:
    """idf(w) tf / (tf + k (1 - b + b length / mean length)), idf = ln(1 + (N - n + 0.5)/(n + 0.5))
    (Kamphuis et al., 2020, "Which BM25 do you mean?", Lucene's variant without its constant k + 1).
    """
    documents = [re.findall(r"\w\w+", text.lower()) for text in TEXTS]
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for words in documents:
        score = 0.0
        for word in query.lower().split():
            having = sum(word in other for other in documents)
            idf = math.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
            count = words.count(word)
            score += idf * count / (count + 1.5 * (1 - 0.75 + 0.75 * len(words) / mean))
        scores.append(score)
    return scores


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


@pytest.mark.parametrize("query", ["Spree river", "capital France", "river", "cheese bread cheese"])
def test_index_ranks_as_the_formula_does(query: str) -> None:
    scores = lucene_scores(query)
    best = sorted(range(len(TEXTS)), key=lambda place: -scores[place])
    expected = [TEXTS[place] for place in best if scores[place] > 0]
    found = Index([Document(text) for text in TEXTS]).find(query, 10)
    assert [each.text for each in found] == expected


def test_index_finds_nothing_for_unknown_words() -> None:
    assert Index([Document(text) for text in TEXTS]).find("the zebra", 3) == []


def test_search_answers_with_numbered_documents(file: Path) -> None:
    search = Search(str(file), top_k=2)
    call = json.dumps({"name": "search", "arguments": {"query": "Spree"}})
    observation = search.step(f"<tool_call>{call}</tool_call>")
    assert observation.text == f"[1] {TEXTS[2]}\n[2] {TEXTS[1]}"
    assert SearchTool(str(file)).run({"query": "zebra"}) == "no document matches"


def test_search_shows_and_searches_titles(tmp_path: Path) -> None:
    path = tmp_path / "titled.jsonl"
    path.write_text('{"title": "Zebra", "text": "striped\\u2028animal"}\n\n{"text": "horse"}\n')
    assert SearchTool(str(path)).run({"query": "zebra"}) == "[1] Zebra\nstriped\u2028animal"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "has no line"),
        ("{", r"bad\.jsonl:1 is not JSON"),
        ('{"text": "a"}\n{"txt": "a"}', r"bad\.jsonl:2 is no document"),
        ('{"text": " "}', "is no document"),
        ('{"text": "a", "title": 3}', "is no document"),
    ],
)
def test_search_refuses_a_file_without_documents(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=said):
        Search(str(path))


def test_search_refuses_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        Search(str(tmp_path / "none.jsonl"))
