"""Lines of the log as JSON."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

from megatron_resrl.observe.log_format import JsonFormatter
from megatron_resrl.platform import phases
from megatron_resrl.platform.phases import begin_step, named_phase


def test_json_line_has_rank_step_and_phase(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(phases._status, "step", None)
    record = logging.LogRecord("room", logging.WARNING, "", 1, "é %d of\n%d", (1, 2), None)
    with named_phase("update"):
        begin_step(7)
        line = JsonFormatter().format(record)
    assert "\n" not in line
    content = json.loads(line)
    assert (content["rank"], content["step"], content["phase"]) == (3, 7, "update")
    assert content["message"] == "é 1 of\n2"
    assert (content["level"], content["logger"]) == ("WARNING", "room")
    assert content["time"].endswith("+00:00")
    assert content["host"]


def test_json_line_holds_a_traceback():
    try:
        raise KeyError("unit")
    except KeyError:
        record = logging.LogRecord("room", logging.ERROR, "", 1, "lost", (), sys.exc_info())
    assert "KeyError: 'unit'" in json.loads(JsonFormatter().format(record))["exception"]


@pytest.mark.setting("logging.format")
def test_json_log_holds_errors_of_the_recipe_too(tmp_path):
    command = [sys.executable, "-m", "megatron_resrl", "sft", "--logging.format=json"]
    done = subprocess.run(
        [*command, f"--model.path={tmp_path}/none"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    (line,) = (json.loads(text) for text in done.stderr.splitlines() if "model.path" in text)
    assert line["level"] == "ERROR"
    assert (line["step"], line["rank"]) == (None, 0)
