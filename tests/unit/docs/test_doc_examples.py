"""Code in the pages runs as it stands there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adding_page import example_of_the_page

from megatron_resrl.algorithms.registry import get_algorithm


def test_algorithm_of_the_adding_page_centres_by_the_median(tmp_path: Path) -> None:
    (tmp_path / "my_algorithms.py").write_text(example_of_the_page("class MedianCentred"))
    algorithm = get_algorithm(f"{tmp_path / 'my_algorithms.py'}:MedianCentred", scale=2.0)
    rewards = torch.tensor([1.0, 0.0, 0.25, 2.0, 4.0], dtype=torch.float64)
    found = algorithm.sample_advantages(rewards, rewards, torch.tensor([7, 7, 7, 9, 9]))
    assert found.tolist() == pytest.approx([1.5, -0.5, 0.0, -2.0, 2.0])
