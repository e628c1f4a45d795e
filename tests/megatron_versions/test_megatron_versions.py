"""The oldest and the newest megatron-core that are supported read each other's checkpoints, and
compute the same."""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoint as tiny
import tiny_conversion
from megatron_versions.suite import FOLDER, HERE, VERSION, needs_other_version, run_on

from megatron_resrl.conversion.to_hugging_face import convert_megatron_to_hf

pytestmark = needs_other_version
INSTALLED = metadata.version("megatron-core")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def found(models: Path, work: Path) -> list[dict[str, Any]]:
    """What the other version printed, then the installed one, then the other one again."""
    script = (HERE / "exchange.py", models / "qwen3", work)
    said = [
        run_on(FOLDER, *script, "write=newer", "model=megatron/iter_0000001"),
        run_on(None, *script, "read=newer", "write=older"),
        run_on(FOLDER, *script, "read=older"),
    ]
    return [json.loads(output.splitlines()[-1]) for output in said]


def test_versions_continue_from_each_others_checkpoints(found):
    other, installed, again = found
    assert [each["version"] for each in found] == [VERSION, INSTALLED, VERSION]
    assert installed["newer"] == other["newer"]
    assert again["older"] == installed["older"]


def test_versions_take_the_same_steps(found):
    assert found[0]["newer"] == found[1]["older"]


def test_weights_saved_by_the_newer_alone_convert(found, models, work, tmp_path):
    model = Path(shutil.copytree(work / "megatron", tmp_path / "megatron"))
    # megatron-core 0.19 itself writes no common.pt.
    assert not (model / "iter_0000001" / "common.pt").exists()
    shutil.copy(models / "qwen3" / "config.json", model)
    (model / "latest_checkpointed_iteration.txt").write_text("1")
    convert_megatron_to_hf(str(model), str(tmp_path / "hf"))
    converted, original = (tiny_conversion.tensors(d) for d in (tmp_path / "hf", models / "qwen3"))
    assert tiny_conversion.differing(converted, original) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("writer", "reader"), [(FOLDER, None), (None, FOLDER)], ids=["newer to older", "older to newer"]
)
def test_versions_reshard_each_others_checkpoints(models, tmp_path, writer, reader):
    script = HERE / "reshard.py"
    wrote = run_on(writer, script, "write", models, tmp_path).splitlines()
    read = run_on(reader, script, "read", models, tmp_path).splitlines()
    assert {wrote[0], read[0]} == {VERSION, INSTALLED}
    results = [json.loads(line.removeprefix("RESULT ")) for line in read if "RESULT " in line]
    cases = [rank for result in results for ranks in result.values() for rank in ranks]
    assert len(cases) == 17
    for rank in cases:
        assert rank["weights that differ"] == []
        stored = rank["stored tensors"]
        assert stored["differing"] == stored["only in the second"] == stored["zero moments"] == []
        # As between layouts of one version.
        expected, grad_norm = rank["grad norms"]
        assert grad_norm == pytest.approx(expected, rel=1e-5)
        assert rank["after another step"] < 1e-5
