"""What a sender sends at which sync; the servers decode with vLLM's side of the product."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from answering import answering
from kept_files import KeptFiles
from servers_of import needed_model

from megatron_resrl.config.schema import RolloutConfig, VllmConfig
from megatron_resrl.rollout.weight_sync.control import ServerControl
from megatron_resrl.rollout.weight_sync.sender import WeightSender, build_sender
from megatron_resrl.rollout.weight_sync.stream import ServedWeights


class Server:
    """Takes weights; `answers`: whether it can say which ones it keeps."""

    def __init__(self, *, answers: bool = True) -> None:
        self.files, self.answers = KeptFiles(), answers
        self.weights: dict[str, torch.Tensor] = {}

    def __call__(self, request):
        if request.route == "/update_weights":
            self.weights |= self.files.load(Path(request.body["update_info"]["path"]))
        if request.route == "/collective_rpc":
            if not self.answers:
                return 500, {"error": "no such method"}
            return 200, {"results": [self.files.identities()]}
        return 200, {"success": True}

    def has(self, weights: ServedWeights) -> bool:
        """Whether it has these weights, bit for bit."""
        return all(_bits(tensor) == _bits(self.weights[name]) for name, tensor in weights)


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.fixture
def sender_to(recipe, policy, tmp_path):
    """A sender with `weight_transfer_delta`, and controls of servers."""
    with contextlib.ExitStack() as stack:

        def connect(delta: str, *servers: Server) -> tuple[WeightSender, list[ServerControl]]:
            vllm = VllmConfig(
                weight_transfer="file",
                weight_transfer_delta=delta,
                transfer_dir=str(tmp_path),
                bucket_bytes=20_000,
            )
            urls = [stack.enter_context(answering(server)) for server in servers]
            sender = build_sender(policy, needed_model(recipe), vllm, RolloutConfig())
            return sender, [ServerControl(url, timeout_s=10) for url in urls]

        yield connect


@pytest.fixture
def change(policy):
    """Changes one value of the policy by its last bit."""

    @torch.no_grad()
    def change_one() -> None:
        weight = dict(policy.modules[0].named_parameters())["decoder.final_layernorm.weight"]
        weight[1] = torch.nextafter(weight[1], torch.tensor(9.0))

    return change_one


@pytest.mark.setting("vllm.weight_transfer_delta")
def test_weight_sender_sends_changes_after_the_first_sync(sender_to, policy, change):
    servers = Server(), Server()
    sender, controls = sender_to("auto", *servers)
    weights = ServedWeights(policy)
    first = sender.send(controls, 1)
    assert first.changed_fraction is None
    assert first.sent_bytes >= first.num_bytes == sum(t.nbytes for _, t in weights.once())
    for version in (2, 3):
        change()
        report = sender.send(controls, version)
        assert (report.sent_bytes, report.failed) == (6, ())
        assert report.changed_fraction == 2 / first.num_bytes
        assert all(server.has(weights) for server in servers)
    assert sender.send(controls, 4).changed_fraction == 0


@pytest.mark.parametrize("lost", ["bytes", "an update", "answers"])
def test_weight_sender_sends_all_if_a_server_lacks_bytes(sender_to, policy, change, lost):
    good, bad = Server(), Server()
    sender, controls = sender_to("auto", good, bad)
    first = sender.send(controls, 1)
    if lost == "bytes":
        bad.files.clear()  # As a restart does.
    elif lost == "an update":
        change()
        sender.send(controls[:1], 2)
    else:
        bad.answers = False
    change()
    report = sender.send(controls, 3)
    assert report.sent_bytes == first.sent_bytes
    assert report.changed_fraction > 0
    assert good.has(ServedWeights(policy))
    assert bad.has(ServedWeights(policy))
    bad.answers = True
    change()
    assert sender.send(controls, 4).sent_bytes == 6


@pytest.mark.setting("vllm.weight_transfer_delta")
@pytest.mark.parametrize(
    ("delta", "free", "kept"),
    [("never", 2**40, False), ("auto", 2**16, False), ("always", 2**16, True)],
)
def test_weight_sender_keeps_bytes_as_the_recipe_says(
    sender_to, change, monkeypatch, caplog, delta, free, kept
):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    server = Server()
    sender, controls = sender_to(delta, server)
    first = sender.send(controls, 1)
    assert bool(server.files.identities()) == kept
    change()
    assert (sender.send(controls, 2).sent_bytes < first.sent_bytes) == kept
    warned = [record for record in caplog.records if "free on this host" in record.message]
    assert bool(warned) == (delta == "auto")


@pytest.mark.parametrize(("delta", "keeps"), [("auto", False), ("always", True)])
def test_weight_sender_auto_gives_up_where_most_has_changed(
    sender_to, policy, change, caplog, delta, keeps
):
    server = Server()
    sender, controls = sender_to(delta, server)
    first = sender.send(controls, 1)
    with torch.no_grad():
        for parameter in policy.modules[0].parameters():
            parameter.copy_(torch.randn_like(parameter))
    with caplog.at_level("INFO"):
        report = sender.send(controls, 2)
    assert report.sent_bytes == first.sent_bytes
    assert report.changed_fraction > 0.9
    assert ("because an update has changed 100 % of their bytes" in caplog.text) != keeps
    for version in (3, 4):
        change()
        report = sender.send(controls, version)
        assert server.has(ServedWeights(policy))
        assert (report.sent_bytes == 6) == bool(server.files.identities()) == keeps
