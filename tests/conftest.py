"""Shared fixtures: the reference data, and markers that need a device."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

# How long an example takes depends on what else the machine does.
settings.register_profile("without deadlines", deadline=None)
settings.load_profile("without deadlines")


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder with reference inputs and outputs; its README.md says where they are from."""
    return Path(__file__).parent / "data"


@pytest.fixture(scope="module", autouse=True)
def _policies_end_with_their_module() -> Iterator[None]:
    """Frees what the module has trained, if it left the threads of its process groups."""
    yield
    if not torch.distributed.is_initialized() and _threads() > _MANY_THREADS:
        import layouts  # Here: few tests need what it imports.

        layouts.free_wrappers()


_MANY_THREADS = 50
"""Of one process: as many as the process groups of one policy have."""


def _threads() -> int:
    folder = Path("/proc/self/task")
    return len(os.listdir(folder)) if folder.is_dir() else 0


@pytest.fixture(scope="module")
def qwen3_on_one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of a tiny Qwen3; the process groups of one rank exist while the module's tests run."""
    import tiny_families  # Here: few tests need what it imports.

    from megatron_resrl.config.schema import Recipe
    from megatron_resrl.platform.distributed import initialize, shutdown

    initialize(Recipe().parallel, seed=0)
    yield tiny_families.write_families(tmp_path_factory.mktemp("models"), ["qwen3"])["qwen3"]
    shutdown()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--setting", help="run only the tests that claim this setting of a recipe")
    parser.addoption("--rehearse", action="store_true", help="run a GPU's tests on this CPU")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips tests whose marker names something that is not there, or that `-m` must ask for."""
    items.sort(key=_turn)
    asked = config.getoption("-m") or ""
    if setting := config.getoption("--setting"):
        items[:] = [item for item in items if setting in _claimed(item)]
    for item in items:
        has_device = torch.cuda.is_available() or config.getoption("--rehearse")
        if item.get_closest_marker("gpu") and not has_device:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("vllm"):
            from served_engine import vllm_python  # Here: it imports what few tests need.

            python, reason = vllm_python()
            if python is None:
                item.add_marker(pytest.mark.skip(reason=reason))
        for marker in ("slow", "faults"):
            if item.get_closest_marker(marker) and marker not in asked:
                item.add_marker(pytest.mark.skip(reason=f"run with `pytest -m {marker}`"))


_FIRST = ("te_on_cpu", "megatron_versions", "end_to_end", "distributed")
"""Folders whose files take longest; with these at the end, one worker would wait for the other."""


def _turn(item: pytest.Item) -> int:
    folders = item.path.parts
    return next((turn for turn, name in enumerate(_FIRST) if name in folders), len(_FIRST))


def _claimed(item: pytest.Item) -> set[str]:
    return {name for marker in item.iter_markers("setting") for name in marker.args}
