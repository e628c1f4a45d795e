"""Models of all families and their reference, made once for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_families as tiny
import torch


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one model directory per family and `references.pt`."""
    folder = tmp_path_factory.mktemp("families")
    paths = tiny.write_families(folder, tiny.family_configs() | tiny.windowed_configs())
    references = {name: tiny.reference(path) for name, path in paths.items()}
    torch.save(references, folder / "references.pt")
    return folder
