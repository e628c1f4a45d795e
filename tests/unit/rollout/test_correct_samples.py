"""Correct responses of a recording become conversations to learn."""

from __future__ import annotations

import pytest

from megatron_resrl.data.conversations import ConversationFile, read_conversations
from megatron_resrl.errors import InputError
from megatron_resrl.rollout.correct_samples import write_correct_samples
from megatron_resrl.rollout.engine import Response
from megatron_resrl.rollout.group_table import Group
from megatron_resrl.rollout.recording import Recording


def response(*ids: int, mask: tuple[bool, ...] | None = None) -> Response:
    return Response(ids, (0.0,) * len(ids), "stop", mask)


GROUPS = [
    Group(
        0,
        0,
        (3, 4),
        [response(5), response(6, 7), response(6, 7), response(8)],
        0,
        (0.0, 1.0, 1.0, 1.0),
    ),
    Group(0, 1, (3,), [response(9), response(10)], 1, (0.0, 0.0)),
    Group(1, 0, (5,), [response(11, 12, 13, mask=(True, False, True))], None, (0.5,)),
]


@pytest.fixture
def recording(tmp_path):
    Recording(tmp_path / "recorded").write(4, GROUPS, run=b"run", sampling={})
    return str(tmp_path / "recorded")


def written(recording, tmp_path, **options):
    output = str(tmp_path / "correct.jsonl")
    said = write_correct_samples(recording, output, **options)
    found = read_conversations(ConversationFile(output, "correct"))
    return said, [each.token_ids for each in found]


def test_correct_samples_are_exact_tokens_of_each_group(recording, tmp_path):
    said, found = written(recording, tmp_path)
    assert found == [((3, 4), (6, 7), (True, True))]
    assert said.startswith("1 responses of 1 of 3 groups in 1 steps")


def test_correct_samples_differ_and_keep_their_masks(recording, tmp_path):
    _, found = written(recording, tmp_path, min_score=0.5, per_prompt=3)
    assert found == [
        ((3, 4), (6, 7), (True, True)),
        ((3, 4), (8,), (True,)),
        ((5,), (11, 12, 13), (True, False, True)),
    ]


def test_correct_samples_refuse_what_gives_nothing(recording, tmp_path):
    with pytest.raises(InputError, match="none of its 3 groups"):
        written(recording, tmp_path, min_score=2.0)
    assert not list(tmp_path.glob("correct*"))
    with pytest.raises(InputError, match="holds no step_"):
        written(str(tmp_path), tmp_path)
    written(recording, tmp_path)
    with pytest.raises(InputError, match="it is there already"):
        written(recording, tmp_path)


def test_correct_samples_need_scores(tmp_path):
    plain = Group(0, 0, (3,), [response(5)], 0)
    Recording(tmp_path / "old").write(1, [plain], run=b"run", sampling={})
    with pytest.raises(InputError, match="has no scores"):
        written(str(tmp_path / "old"), tmp_path)
