"""Which way weights go, and that it is said."""

from __future__ import annotations

import pytest

from megatron_resrl.cli import main
from megatron_resrl.config.schema import RolloutConfig, VllmConfig
from megatron_resrl.rollout.weight_sync.choice import transfer_backend, transfer_note

LOCAL, REMOTE = "http://127.0.0.1:8000", "http://node7:8000"


@pytest.mark.setting("rollout.placement", "vllm.urls")
@pytest.mark.parametrize(
    ("placement", "urls", "has_cuda", "chosen", "why"),
    [
        ("colocated", (), False, "file", "no GPUs"),
        ("colocated", (), True, "ipc", "trainer's GPUs"),
        ("colocated", (LOCAL,), True, "ipc", "trainer's GPUs"),
        ("colocated", (LOCAL, REMOTE), True, "nccl", "other hosts"),
        ("disaggregated", (), True, "nccl", "GPUs of their own"),
    ],
)
def test_transfer_backend_follows_the_place_of_the_servers(placement, urls, has_cuda, chosen, why):
    vllm, rollout = VllmConfig(urls=urls), RolloutConfig(engine="vllm", placement=placement)
    backend, reason = transfer_backend(vllm, placement, has_cuda=has_cuda)
    assert backend == chosen
    assert why in reason
    note = transfer_note(vllm, rollout, has_cuda=has_cuda)
    assert chosen in note
    assert reason in note


@pytest.mark.setting("vllm.weight_transfer")
def test_transfer_backend_of_the_recipe_wins():
    vllm = VllmConfig(weight_transfer="file")
    assert transfer_backend(vllm, "colocated", has_cuda=True) == ("file", "as the recipe says")


@pytest.mark.parametrize(
    ("transfer", "delta", "says"),
    [("file", "auto", True), ("file", "never", False), ("nccl", "auto", False)],
)
@pytest.mark.setting("vllm.weight_transfer_delta")
def test_transfer_note_says_whether_changes_are_sent(transfer, delta, says):
    vllm = VllmConfig(weight_transfer=transfer, weight_transfer_delta=delta)
    note = transfer_note(vllm, RolloutConfig(engine="vllm"), has_cuda=True)
    assert (f"what has changed (vllm.weight_transfer_delta {delta})" in note) == says


def test_transfer_note_is_none_where_nothing_is_sent():
    assert transfer_note(VllmConfig(), RolloutConfig(), has_cuda=True) is None
    replay = RolloutConfig(engine="vllm", replay="rollouts")
    assert transfer_note(VllmConfig(), replay, has_cuda=True) is None


def test_transfer_note_is_printed_by_check(capsys):
    main(["check", "--rollout.engine", "vllm"])
    assert "# weights go to the servers by vllm.weight_transfer" in capsys.readouterr().out
    main(["check"])
    assert "weights go to" not in capsys.readouterr().out
