"""A scraper gets the metrics of the last step."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator

import httpx
import pytest
import torch.distributed as dist

from megatron_resrl.config.schema import LoggingConfig
from megatron_resrl.observe.prometheus_endpoint import ADDRESS, PrometheusEndpoint, exposed_name
from megatron_resrl.training.journal import Journal

parser = pytest.importorskip("prometheus_client.parser", reason="the extra `prometheus`")


@pytest.fixture
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def scraped(port: int) -> dict[tuple[str, str], float]:
    """Name and set -> value."""
    text = httpx.get(f"http://{ADDRESS}:{port}/metrics").raise_for_status().text
    return {
        (sample.name, sample.labels.get("set", "")): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind((ADDRESS, 0))
        return listener.getsockname()[1]


def test_exposed_name_is_one_that_prometheus_takes():
    assert exposed_name("reward/mean") == ("megatron_resrl_reward_mean", {})
    name, labels = exposed_name("eval/a/b-c/avg@16")
    assert (name, labels) == ("megatron_resrl_eval_avg_16", {"set": "a/b-c"})


def test_journal_serves_the_newest_step(tmp_path, alone):
    port = free_port()
    settings = LoggingConfig(tensorboard=False, progress_bar=False, prometheus_port=port)
    with Journal(tmp_path, settings, 3, headline="loss", resume_step=None) as journal:
        assert scraped(port) == {}
        journal.finish_step(1, {"loss": 2.5, "eval/x/avg@4": 0.25, "eval/y/avg@4": 0.5})
        journal.finish_step(2, {"loss": math.nan, "time/step": 3.0})
        found = scraped(port)
    assert math.isnan(found.pop(("megatron_resrl_loss", "")))
    assert found == {
        ("megatron_resrl_step", ""): 2,
        ("megatron_resrl_time_step", ""): 3,
        ("megatron_resrl_eval_avg_4", "x"): 0.25,
        ("megatron_resrl_eval_avg_4", "y"): 0.5,
    }
    with pytest.raises(httpx.ConnectError):
        scraped(port)


def test_endpoint_on_a_taken_port_is_a_warning(caplog):
    with socket.socket() as listener:
        listener.bind((ADDRESS, 0))
        listener.listen()
        endpoint = PrometheusEndpoint(listener.getsockname()[1])
    assert endpoint.port is None
    assert "there is no endpoint" in caplog.text
    endpoint.log(1, {"loss": 1.0})
    endpoint.close()
