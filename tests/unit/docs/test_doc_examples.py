"""Code in the pages runs as it stands there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adding_page import example_of_the_page

from megatron_resrl.algorithms.registry import get_algorithm


def test_algorithm_of_the_adding_page_is_leave_one_out(tmp_path: Path) -> None:
    (tmp_path / "my_algorithms.py").write_text(example_of_the_page("class RLOO"))
    rloo = get_algorithm(f"{tmp_path / 'my_algorithms.py'}:RLOO")
    rewards = torch.tensor([1.0, 0.0, 0.5, 2.0, 4.0], dtype=torch.float64)
    found = rloo.sample_advantages(rewards, rewards, torch.tensor([7, 7, 7, 9, 9]))
    # Each reward less the mean of the others of its group.
    assert found.tolist() == pytest.approx([0.75, -0.75, 0.0, -2.0, 2.0])
