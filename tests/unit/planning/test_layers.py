"""Which layers a plan takes, and what it says of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from planned_models import LLAMA_8B, write_config

from megatron_resrl.cli import main
from megatron_resrl.config.schema import PrecisionConfig
from megatron_resrl.errors import UNUSABLE, SettingError
from megatron_resrl.planning.layers import layers_for, layers_sentence

BF16 = PrecisionConfig()
FP8 = PrecisionConfig(fp8="hybrid")


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with Transformer Engine's Python, as far as looking for it goes."""
    package = tmp_path / "site" / "transformer_engine"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('no kernels')\n")
    monkeypatch.syspath_prepend(package.parent)
    return package


def test_layers_are_the_engines_where_its_python_is(engine: Path) -> None:
    assert layers_for(None, BF16) == layers_for(None, FP8) == "transformer_engine"
    assert layers_for("local", BF16) == "local"
    assert layers_sentence("local") == "dry runs on megatron-core's own layers"


def test_layers_are_local_without_the_engine() -> None:
    assert layers_for(None, BF16) == "local"
    assert layers_sentence("local").startswith("Transformer Engine is not installed here: dry runs")
    with pytest.raises(SettingError, match=r"^--layers = 'transformer_engine': its Python is not"):
        layers_for("transformer_engine", BF16)


def test_layers_without_fp8_are_refused_for_it(engine: Path) -> None:
    with pytest.raises(
        SettingError, match=r"^precision.fp8 = 'hybrid': megatron-core's own layers"
    ):
        layers_for("local", FP8)


def test_plan_refuses_fp8_of_an_older_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_config(tmp_path / "model", LLAMA_8B)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {{path: {model}}}\nprecision: {{fp8: hybrid}}\n")
    assert main(["plan", str(recipe), "--quick", "--gpu", "a100-80gb"]) == UNUSABLE
    assert "it needs Ada (compute capability 8.9) or newer, and --gpu a100-80gb has 8.0" in (
        capsys.readouterr().err
    )


IMPORTS_ENGINE = """
import megatron_resrl
try:
    import transformer_engine
except ImportError:
    print("absent")
"""


def imports_engine(folder: Path) -> subprocess.CompletedProcess[str]:
    """A program of the product that imports Transformer Engine from a folder."""
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, "-c", IMPORTS_ENGINE],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_engine_without_kernels_counts_as_not_installed(engine: Path) -> None:
    assert imports_engine(engine.parent).stdout == "absent\n"
    (engine / "libtransformer_engine.so").touch()
    # Where its kernels are, it is imported, as far as this one goes.
    assert "RuntimeError: no kernels" in imports_engine(engine.parent).stderr
