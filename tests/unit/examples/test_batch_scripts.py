"""The batch scripts of the examples are what `launch` prints."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from megatron_resrl.cli import main

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = sorted((ROOT / "examples").rglob("*.sbatch"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_batch_script_is_what_its_first_line_prints(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = script.read_text()
    line = written.splitlines()[1]
    program, *arguments = shlex.split(line.removeprefix("# "))
    assert program == "megatron-resrl"
    monkeypatch.chdir(ROOT)
    assert main(arguments) == 0, f"{line.removeprefix('# ')} > {script.relative_to(ROOT)}"
    assert capsys.readouterr().out == written


def test_recipes_for_many_gpus_have_a_batch_script() -> None:
    folders = [path for path in (ROOT / "examples").glob("*h100*") if path.is_dir()]
    assert not [path.name for path in folders if not (path / "train.sbatch").is_file()]
