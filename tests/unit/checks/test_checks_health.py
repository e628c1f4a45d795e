"""What a long run needs to watch itself."""

from __future__ import annotations

import socket
from importlib.util import find_spec

import pytest


@pytest.mark.parametrize(
    "setting",
    [
        "health.loss_spike",
        "health.grad_norm_spike",
        "health.reward_collapse",
        "health.entropy_collapse",
        "optimizer.non_finite",
    ],
)
def test_rollback_without_checkpoints_is_refused(setting, refused, check):
    problem = refused(f"--{setting}=rollback", "--checkpoint.save_every=0")
    assert problem.setting == setting
    assert "no checkpoint to go back to" in problem.problem
    assert check(f"--{setting}=rollback", "--checkpoint.save_every=1") == []


@pytest.mark.parametrize("budget", ["0", "soon", "-5", "1:99", "[1]"])
def test_time_budget_that_is_no_duration_is_refused(budget, refused):
    problem = refused(f"--time_budget={budget}")
    assert problem.setting == "time_budget"
    assert "3:45:00" in problem.fix


@pytest.mark.parametrize("budget", ["3600", "3:45:00", "1-00:00:00", "null"])
def test_time_budget_takes_clocks_and_seconds(budget, check):
    assert check(f"--time_budget={budget}") == []


def test_prometheus_port_that_is_taken_is_refused(check):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        *absent, taken = check(f"--logging.prometheus_port={port}")
    assert taken.setting == "logging.prometheus_port"
    assert "the port cannot be used" in taken.problem
    installed = find_spec("prometheus_client") is not None
    assert (
        [each.problem for each in absent] == []
        if installed
        else ["prometheus-client is not installed"]
    )
