"""Which way weights go, and that it is said."""

from __future__ import annotations

import pytest

from megatron_resrl.cli import main
from megatron_resrl.config.schema import Recipe, RolloutConfig, VllmConfig
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
def test_the_back_end_follows_from_where_the_servers_are(placement, urls, has_cuda, chosen, why):
    recipe = Recipe(
        rollout=RolloutConfig(engine="vllm", placement=placement), vllm=VllmConfig(urls=urls)
    )
    backend, reason = transfer_backend(recipe, has_cuda=has_cuda)
    assert backend == chosen
    assert why in reason
    note = transfer_note(recipe, has_cuda=has_cuda)
    assert chosen in note
    assert reason in note


@pytest.mark.setting("vllm.weight_transfer")
def test_the_recipe_wins():
    recipe = Recipe(vllm=VllmConfig(weight_transfer="file"))
    assert transfer_backend(recipe, has_cuda=True) == ("file", "as the recipe says")


def test_nothing_is_said_where_nothing_is_sent():
    assert transfer_note(Recipe(), has_cuda=True) is None
    replay = Recipe(rollout=RolloutConfig(engine="vllm", replay="rollouts"))
    assert transfer_note(replay, has_cuda=True) is None


def test_check_prints_it(capsys):
    main(["check", "--rollout.engine", "vllm"])
    assert "# weights go to the servers by vllm.weight_transfer" in capsys.readouterr().out
    main(["check"])
    assert "weights go to" not in capsys.readouterr().out
