"""Records of a dry run survive JSON."""

import json

from megatron_resrl.planning.records import Holder, PhaseRecord, RankRecord, Traffic, Wait


def test_rank_record_survives_json():
    phase = PhaseRecord(
        name="update",
        start_bytes=10,
        peak_bytes=30,
        peak_by_kind={"weights": 10, "activations": 20},
        holders=(Holder("policy/gpt.py:12", "activations", 20),),
        traffic=(Traffic("tensor", 8, "all_gather", 4, 4096),),
        waits=(Wait("training/updating.py:70", 2),),
        matrix_flops={"bfloat16": 1 << 40},
        touched_bytes=7,
        host_copy_bytes=5,
        kernels=3,
    )
    record = RankRecord(rank=3, role="last stage", phases=(phase,))
    assert RankRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
