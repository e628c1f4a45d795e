"""pyproject.toml, constraints.txt and the package agree with each other."""

from __future__ import annotations

import importlib
import itertools
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from megatron_resrl import __version__

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel that setuptools builds from the files of the checkout, in a copy of them."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for file in (ROOT / "megatron_resrl").rglob("*"):
        if file.is_file() and file.suffix != ".pyc":
            copy = source / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    program = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    subprocess.run(
        [sys.executable, "-c", program], cwd=source, check=True, capture_output=True, timeout=600
    )
    return zipfile.ZipFile(next(source.glob("*.whl")))


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {
        canonicalize_name(each.name): next(iter(each.specifier)).version
        for each in found
        if str(each.specifier).startswith("==")
    }


def test_packaging_constraints_pin_every_dependency(project) -> None:
    extras = {
        name: needs for name, needs in project["optional-dependencies"].items() if name != "vllm"
    }
    needed = [*project["dependencies"], *itertools.chain.from_iterable(extras.values())]
    pinned = pins()
    for text in needed:
        requirement = Requirement(text)
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{text} is pinned to {version}"


def test_packaging_extras_are_complete_and_without_apex(project) -> None:
    assert {"vllm", "te", "wandb", "dev", "quickstart", "bench"} <= set(
        project["optional-dependencies"]
    )
    extras = itertools.chain.from_iterable(project["optional-dependencies"].values())
    needed = [*project["dependencies"], *extras]
    assert not any("apex" in need.lower() for need in needed)


def test_metadata_has_name_license_and_readme(project) -> None:
    assert project["name"] == "megatron-resrl"
    assert project["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert (ROOT / project["readme"]).is_file()


def test_packaging_names_the_same_oldest_python_everywhere(project) -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert project["requires-python"] == ">=3.11"
    assert settings["ruff"]["target-version"] == "py311"
    assert "Python 3.11 or newer" in (ROOT / "README.md").read_text()
    assert "Python 3.11 or newer" in (ROOT / "tools" / "install.sh").read_text()
    classified = re.findall(r"Python :: (3\.\d+)", " ".join(project["classifiers"]))
    assert all(SpecifierSet(project["requires-python"]).contains(each) for each in classified)


def test_packaging_citation_names_this_version_and_license(project) -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert citation["license"] == project["license"]
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_packaging_console_script_starts_the_command_line(project) -> None:
    module, _, function = project["scripts"]["megatron-resrl"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_packaging_wheel_holds_every_file_of_the_package(wheel) -> None:
    files = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "megatron_resrl").rglob("*")
        if file.suffix == ".py" or file.name == "py.typed"
    }
    assert files <= set(wheel.namelist())
    assert "megatron_resrl/py.typed" in files


def test_packaging_wheel_metadata_comes_from_pyproject(wheel, project) -> None:
    information = f"megatron_resrl-{__version__}.dist-info"
    metadata = wheel.read(f"{information}/METADATA").decode()
    assert f"\nVersion: {__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert metadata.count("\nProvides-Extra: ") == len(project["optional-dependencies"])
    scripts = wheel.read(f"{information}/entry_points.txt").decode()
    assert "megatron-resrl = megatron_resrl.cli:run" in scripts
    assert wheel.read(f"{information}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()


def test_installer_refuses_an_unknown_extra(project) -> None:
    done = subprocess.run(
        ["bash", ROOT / "tools" / "install.sh", "dev,quickstrat"],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"VENV": "/nowhere/venv", "PYTHON": sys.executable},
    )
    assert done.returncode == 1
    assert "there is no extra 'quickstrat'; there are: " in done.stderr
    assert set(project["optional-dependencies"]) <= set(done.stderr.split())
