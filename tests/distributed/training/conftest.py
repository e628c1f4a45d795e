"""Models of all families, made once for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_families as tiny


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one model directory per family."""
    folder = tmp_path_factory.mktemp("models")
    tiny.write_families(folder, ["qwen3", "qwen3_moe"])
    return folder
