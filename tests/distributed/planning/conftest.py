"""Models whose real runs the device without numbers is compared with."""

from __future__ import annotations

from pathlib import Path

import pytest
from dry_runs import write_config
from transformers import AutoConfig, AutoModelForCausalLM

# The host's tensors count in a real run on a CPU: the wider the model, the less.
SIZES = {"hidden_size": 256, "intermediate_size": 768}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A dense one, and one with experts."""
    root = tmp_path_factory.mktemp("models")
    folders = [
        write_config(root / name, experts=name == "experts", **SIZES)
        for name in ("dense", "experts")
    ]
    for folder in folders:
        config = AutoConfig.from_pretrained(folder)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folders
