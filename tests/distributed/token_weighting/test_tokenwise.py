"""Token-wise weights and those of whole groups are the same in every layout."""

from __future__ import annotations

from pathlib import Path

import tiny_families as tiny
import torch
from ranks import run_ranks


def test_weights_of_states_are_the_same_in_every_layout(tmp_path: Path) -> None:
    tiny.write_families(tmp_path, ["qwen3"])
    script, found = Path(__file__).with_name("ranks_tokenwise.py"), {}
    for ranks in (1, 2):
        run_ranks(script, ranks, tmp_path, tmp_path / "weights.pt")
        found |= torch.load(tmp_path / "weights.pt")
    # The last bits of fp32 weights and their update.
    assert max(difference for *_, difference in found.values()) <= 1e-6
    whole, whole_shear, whole_nthr, whole_thr, _ = found.pop("one")
    assert set(found) == {"TP2", "TP2+SP", "PP2", "CP2"}
    assert (whole < 1).any()
    assert (whole_shear != 1).any()
    assert 1 < int((whole_nthr == 0.25).sum()) < whole_nthr.numel() / 2
    assert len(whole_thr.unique()) == 4
    for name, (weights, shear, nthr, thr, _) in found.items():
        assert torch.equal(nthr, whole_nthr), name
        assert torch.equal(thr, whole_thr), name
        torch.testing.assert_close(weights, whole, rtol=1e-5, atol=0, msg=name)
        # Besides, a loop of fp32 whose sums are over pairs in other places.
        torch.testing.assert_close(shear, whole_shear, rtol=1e-4, atol=0, msg=name)
