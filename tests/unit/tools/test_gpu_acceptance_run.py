"""The runner of the acceptance test, on small sections that crash, hang or succeed; and what it
carries to another machine."""

from __future__ import annotations

import importlib.util
import io
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from ranks import REPOSITORY

CONFTEST = """\
import json

import pytest


def pytest_addoption(parser):
    for name in ("--results", "--section"):
        parser.addoption(name)
    parser.addoption("--rehearse", action="store_true")


@pytest.fixture
def write(pytestconfig):
    def written(name, status="ok", end="\\n"):
        line = {"section": pytestconfig.getoption("--section"), "name": name, "status": status}
        with open(pytestconfig.getoption("--results"), "a") as file:
            file.write(json.dumps(line | {"value": 0.5, "limit": "<= 1", "seconds": 0.1}) + end)

    return written
"""


def tool(name: str) -> ModuleType:
    """A module of the folder tools."""
    sys.path.insert(0, str(REPOSITORY / "tools"))
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def acceptance() -> ModuleType:
    return tool("gpu_acceptance")


@pytest.fixture(scope="module")
def files() -> ModuleType:
    return tool("gpu_acceptance_files")


def run_section(acceptance: ModuleType, folder: Path, body: str, limit_s: float = 60.0):
    """Runs one section, whose only test has this body; returns the run."""
    (folder / "conftest.py").write_text(CONFTEST)
    test = folder / "test_it.py"
    test.write_text(f"import os, time\n\n\ndef test_it(write):\n    {body}\n")
    run = acceptance.Run(folder, [], rehearsed=False, deadline=time.monotonic() + 60)
    run.section(acceptance.Section("it", (str(test),), False, limit_s, ""))
    return run


def test_acceptance_run_prints_each_check_and_counts(acceptance, tmp_path, capsys) -> None:
    run = run_section(
        acceptance, tmp_path, 'write("a"); write("b", "not run"); write("c", "noted")'
    )
    assert run.report() == 0
    printed = capsys.readouterr().out
    assert "ok        it/a  0.5  (<= 1)  0.1 s" in printed
    assert "\n1 ok, 0 failed, 1 not run; " in printed


def test_acceptance_run_notices_a_crash(acceptance, tmp_path, capsys) -> None:
    run = run_section(acceptance, tmp_path, 'write("a"); write("b", end=""); os._exit(11)')
    assert run.report() == 1
    printed = capsys.readouterr().out
    assert "FAILED    it/process  ended with status 11" in printed
    assert "1 ok, 1 failed" in printed


def test_acceptance_run_ends_a_hang_and_shows_its_log(acceptance, tmp_path, capsys) -> None:
    body = 'write("a"); os.write(2, b"stuck here"); time.sleep(600)'
    run = run_section(acceptance, tmp_path, body, limit_s=6.0)
    assert run.report() == 1
    printed = capsys.readouterr().out
    assert "FAILED    it/time  ended after 6 s" in printed
    assert f"# end of {tmp_path / 'it.log'}" in printed


def test_acceptance_run_starts_nothing_after_its_time(acceptance, tmp_path, capsys) -> None:
    run = acceptance.Run(tmp_path, [], rehearsed=False, deadline=time.monotonic() - 1)
    run.section(acceptance.Section("it", ("nothing.py",), False, 60, ""))
    assert run.report() == 1
    assert "not run   it/section  the time of --limit is used up" in capsys.readouterr().out


def test_acceptance_names_sections_that_exist(acceptance) -> None:
    assert [section.name for section in acceptance._chosen("fp8,facts")] == ["fp8", "facts"]
    with pytest.raises(ValueError, match="--sections fp9: sections are facts, local"):
        acceptance._chosen("fp9,fp8")
    for section in acceptance.SECTIONS:
        for file in section.files:
            assert (REPOSITORY / "tests" / "gpu" / file).is_file()
    run = {file for section in acceptance.SECTIONS for file in section.files}
    assert run == {file.name for file in (REPOSITORY / "tests" / "gpu").glob("test_*.py")}


def test_pack_pins_what_constraints_pin(files) -> None:
    constraints = (REPOSITORY / "constraints.txt").read_text()
    pins = files.pinned(files.CARRIED, constraints)
    assert len(pins) == len(files.CARRIED)
    assert "megatron-core==0.16.1" in pins
    with pytest.raises(files.CannotPack, match="no version of unheard_of"):
        files.pinned(["unheard_of"], constraints)


def test_pack_refuses_a_bundle_that_is_not_there(files, tmp_path) -> None:
    with pytest.raises(files.CannotPack, match="there is no such file"):
        files.pack(tmp_path / "pack", tmp_path / "absent.tar.xz", REPOSITORY / "constraints.txt")


def test_unpack_wheels_leaves_out_what_nobody_needs(files, tmp_path) -> None:
    wheel = tmp_path / "pyarrow-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in (
            "pyarrow/lib.so",
            "pyarrow/tests/more/test_a.py",
            "pyarrow/libarrow_flight.so",
        ):
            archive.writestr(name, "")
    files.unpack_wheels([wheel], tmp_path / "site")
    assert [file.name for file in (tmp_path / "site" / "pyarrow").iterdir()] == ["lib.so"]


def test_install_unpacks_both_archives_once(files, tmp_path) -> None:
    source, target = tmp_path / "carried", tmp_path / "libraries"
    with pytest.raises(files.CannotPack, match=r"there is no site\.tar\.xz"):
        files.install(source, target)
    source.mkdir()
    for name in (files.SITE, files.ENGINE):
        with tarfile.open(source / name, "w:xz") as archive:
            archive.addfile(tarfile.TarInfo(f"./{name[0]}.py"), io.BytesIO())
    folders = files.install(source, target)
    assert [folder.name for folder in folders] == ["site", "engine"]
    (folders[0] / "s.py").unlink()
    assert files.install(source, target) == folders
    assert not (folders[0] / "s.py").exists()
    assert (folders[1] / "e.py").is_file()
