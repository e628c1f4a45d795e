"""Recorded rollouts come back bit by bit, and what cannot be read is named."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_resrl.config.schema import RolloutConfig
from megatron_resrl.rollout.engine import Opening, Response
from megatron_resrl.rollout.group_table import Group, from_table, to_table
from megatron_resrl.rollout.recording import Recording, RecordingError, sampling_settings

GROUPS = [
    Group(0, 0, (1, 2), [Response((5, 1), (-0.1, -1 / 3), "stop")], number=None),
    Group(0, 1, (3,), [Response((7,), (-2.5e-9,), "length", (True,), (3, 4), 0.5)] * 2, number=1),
    Group(1, 0, (4, 4), [Response((8, 9), (0.0, -1.0), "stop", (False, True))], number=0),
]
SETTINGS = sampling_settings(RolloutConfig())


@st.composite
def responses(draw: st.DrawFn) -> Response:
    tokens = draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5))
    count = len(tokens)
    log_probs = draw(st.lists(st.floats(-1e3, 0), min_size=count, max_size=count))
    mask = draw(st.none() | st.lists(st.booleans(), min_size=count, max_size=count).map(tuple))
    versions = draw(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)))
    score = draw(st.none() | st.floats(-1, 1))
    reason = draw(st.sampled_from(["stop", "length"]))
    prompts = st.lists(st.integers(0, 99), max_size=3).map(tuple)
    opening = draw(st.none() | st.builds(Opening, st.text(max_size=3), prompts))
    failure = draw(st.none() | st.just("late"))
    ids = tuple(tokens)
    return Response(ids, tuple(log_probs), reason, mask, versions, score, opening, failure)


@given(st.lists(st.lists(responses(), min_size=1, max_size=3), max_size=3))
def test_group_table_keeps_every_field_of_every_response(several):
    groups = [Group(2, index, (1, index), each) for index, each in enumerate(several)]
    assert from_table(to_table(groups)) == groups


def test_recording_comes_back_and_is_plain_parquet(tmp_path):
    recording = Recording(tmp_path / "deep" / "record")
    for step in (3, 12):
        recording.write(step, GROUPS, run=b"run", sampling=SETTINGS)
    assert recording.steps() == [3, 12]
    assert recording.read(12) == GROUPS
    assert recording.run(3) == b"run"
    assert recording.sampling(3) == SETTINGS
    columns = pq.read_table(recording.path(3)).to_pydict()
    assert columns["token_ids"] == [[5, 1], [7], [7], [8, 9]]
    assert columns["group"] == [None, 1, 1, 0]


def test_recording_names_missing_damaged_and_foreign_files(tmp_path):
    recording = Recording(tmp_path)
    with pytest.raises(RecordingError, match=r"step 1 is not recorded.*it holds no step"):
        recording.read(1)
    recording.write(2, GROUPS, run=b"run", sampling=SETTINGS)
    with pytest.raises(RecordingError, match=r"step_000001.parquet; it holds steps 2 to 2"):
        recording.read(1)
    recording.path(1).write_bytes(b"PAR1 half a file")
    with pytest.raises(RecordingError, match=r"step_000001.parquet cannot be read"):
        recording.read(1)
    with pytest.raises(RecordingError, match=r"step_000001.parquet cannot be read"):
        recording.sampling(1)
    pq.write_table(pa.table({"prompt": [1]}), recording.path(1))
    with pytest.raises(RecordingError, match="has columns prompt"):
        recording.read(1)
    with pytest.raises(RecordingError, match=r"was not written by rollout.record"):
        recording.sampling(1)
