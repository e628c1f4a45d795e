"""The device without numbers holds as many bytes as real ranks do."""

import json
from pathlib import Path

import pytest
from ranks import run_ranks

RANKS = (
    *(("tp2_sp", 0), ("cp2", 0), ("pp2_vpp2", 1), ("ep2", 0)),
    *(("pretrain_pp2_documents", 1), ("sft_dp2", 0)),
    *(
        pytest.param(*each, marks=pytest.mark.slow)
        for each in (
            *(("dp2", 0), ("tp2", 0), ("tp2_packed", 1), ("dp2_recompute", 0)),
            *(("pp2", 0), ("pp2", 1), ("pp2_vpp2", 0), ("cp2", 1), ("ep2", 1)),
            *(("pretrain_dp2", 0), ("pretrain_tp2_sp", 0), ("pretrain_pp2_documents", 0)),
            *(("pretrain_cp2", 1), ("sft_tp2_padded", 0)),
        )
    ),
)
"""Layout, and the rank that is compared."""
# An untrained router gives one rank more tokens than the other; in a dry run both get as many.
TOLERANCE = {"ep2": 0.03}
SCRIPT = Path(__file__).with_name("ranks_memory.py")


@pytest.fixture(scope="module")
def real(models: list[Path], request: pytest.FixtureRequest) -> list[dict[str, dict[str, int]]]:
    """Layout -> phase -> bytes, of both ranks, for the layouts of the tests that run."""
    own = [item for item in request.session.items if item.path == request.path]
    run = [item for item in own if not item.get_closest_marker("skip")]
    layouts = dict.fromkeys(item.callspec.params["layout"] for item in run)
    said = run_ranks(SCRIPT, 2, *models, "real", *layouts)
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


@pytest.mark.parametrize(("layout", "rank"), RANKS)
def test_fake_device_holds_the_bytes_of_real_ranks(layout, rank, models, real):
    # What is patched for one layout stays so in its process.
    said = run_ranks(SCRIPT, 1, *models, rank, layout)
    fake = json.loads(said.splitlines()[-1])[layout]
    assert fake == pytest.approx(real[rank][layout], rel=TOLERANCE.get(layout, 0.01))
