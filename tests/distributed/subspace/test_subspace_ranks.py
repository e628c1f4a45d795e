from __future__ import annotations

from pathlib import Path

import numpy as np
from ranks import run_ranks

SCRIPT = Path(__file__).parent / "ranks_subspace.py"


def test_token_weights_over_2_and_4_ranks_are_those_of_one(reference, tmp_path):
    for world_size in (2, 4):
        output = tmp_path / f"{world_size}.npz"
        assert "all cases agree" in run_ranks(SCRIPT, world_size, reference / "golden", output)
    two, four = np.load(tmp_path / "2.npz"), np.load(tmp_path / "4.npz")
    assert len(two.files) >= 20
    for name in two.files:
        # Asked for: within 1e-5 of each other.
        np.testing.assert_allclose(two[name], four[name], atol=1e-5, rtol=0, err_msg=name)
        # Asked for: both methods within 1e-4 of each other.
        other = two[name.replace("_rows", "_gram")]
        np.testing.assert_allclose(two[name], other, atol=1e-4, rtol=0, err_msg=name)
