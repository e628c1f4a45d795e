"""What of the settings reaches what a run writes down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from megatron_resrl.config.schema import LoggingConfig
from megatron_resrl.training import journal

NAMES: dict[str, Any] = {
    "wandb_project": "mine",
    "wandb_name": "first",
    "wandb_entity": "team",
    "wandb_group": "seeds",
    "wandb_tags": ("a", "b"),
    "prometheus_port": 9100,
}


@pytest.mark.setting("logging.wandb_project", "logging.wandb_name", "logging.wandb_entity")
@pytest.mark.setting("logging.wandb_group", "logging.wandb_tags", "logging.progress_bar")
@pytest.mark.setting("logging.prometheus_port")
def test_journal_settings_reach_metrics_and_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    for name in ("MetricsLogger", "Progress"):
        monkeypatch.setattr(journal, name, lambda *_, **options: given.update(options))
    logging = LoggingConfig(progress_bar=False, **NAMES)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        journal.Journal(tmp_path, logging, 4, headline="loss", resume_step=None)
    finally:
        dist.destroy_process_group()
    assert {name: given[name] for name in NAMES} == NAMES
    assert given["bar"] is False
    assert given["write"] is None


def test_journal_writes_its_lines_as_json_to_the_log(tmp_path, caplog, capfd):
    caplog.set_level("INFO")
    settings = LoggingConfig(tensorboard=False, format="json")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with journal.Journal(tmp_path, settings, 4, headline="loss", resume_step=None) as written:
            written.finish_step(1, {"loss": 2.5})
    finally:
        dist.destroy_process_group()
    assert caplog.messages[-1].startswith("step 1/4  loss 2.500")
    assert "step 1/4" not in capfd.readouterr().out
