"""setup.py and constraints.txt agree with each other and with the code."""

from __future__ import annotations

import importlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from megatron_resrl import __version__

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def distribution():
    importlib.import_module("setuptools")  # Provides distutils from Python 3.12 on.
    run_setup = importlib.import_module("distutils.core").run_setup
    arguments = sys.argv
    try:
        return run_setup(str(ROOT / "setup.py"), stop_after="init")
    finally:
        sys.argv = arguments


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {
        canonicalize_name(each.name): next(iter(each.specifier)).version
        for each in found
        if str(each.specifier).startswith("==")
    }


def test_every_direct_dependency_is_pinned_within_its_range(distribution) -> None:
    extras = {name: needs for name, needs in distribution.extras_require.items() if name != "vllm"}
    needed = [*distribution.install_requires, *itertools.chain.from_iterable(extras.values())]
    pinned = pins()
    for text in needed:
        requirement = Requirement(text)
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{text} is pinned to {version}"


def test_the_extras_are_there_and_apex_is_never_required(distribution) -> None:
    assert {"vllm", "te", "wandb", "dev", "quickstart", "bench"} <= set(distribution.extras_require)
    extras = itertools.chain.from_iterable(distribution.extras_require.values())
    needed = [*distribution.install_requires, *extras]
    assert not any("apex" in need.lower() for need in needed)


def test_metadata_names_version_and_python(distribution) -> None:
    assert distribution.metadata.name == "megatron-resrl"
    assert distribution.metadata.version == __version__
    assert str(distribution.python_requires) == ">=3.10"


def test_the_console_script_starts_the_command_line(distribution) -> None:
    (script,) = distribution.entry_points["console_scripts"]
    name, _, target = script.partition(" = ")
    module, _, function = target.partition(":")
    assert name == "megatron-resrl"
    assert callable(getattr(importlib.import_module(module), function))


def test_every_room_is_packaged(distribution) -> None:
    rooms = {
        "megatron_resrl." + path.parent.name for path in (ROOT / "megatron_resrl").glob("*/*.py")
    }
    assert rooms | {"megatron_resrl"} <= set(distribution.packages)


def test_the_installer_refuses_extras_that_there_are_not(distribution) -> None:
    done = subprocess.run(
        ["bash", ROOT / "tools" / "install.sh", "dev,quickstrat"],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"VENV": "/nowhere/venv", "PYTHON": sys.executable},
    )
    assert done.returncode == 1
    assert "there is no extra 'quickstrat'; there are: " in done.stderr
    assert set(distribution.extras_require) <= set(done.stderr.split())
