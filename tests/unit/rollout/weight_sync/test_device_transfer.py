"""The course of transfers between GPUs, with servers that are sockets and NCCL that writes down."""

from __future__ import annotations

import base64
import contextlib
import pickle
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from answering import answering
from nccl_double import nccl_double
from served_engine import one_rank

from megatron_resrl.errors import UNUSABLE, exit_status
from megatron_resrl.rollout.weight_sync.control import ServerControl
from megatron_resrl.rollout.weight_sync.device_source import PolicySource
from megatron_resrl.rollout.weight_sync.device_transfer import IpcTransfer, NcclTransfer
from megatron_resrl.rollout.weight_sync.nccl import NcclFailure
from megatron_resrl.rollout.weight_sync.packed import as_bytes
from megatron_resrl.weights.export import TensorFacts

WEIGHTS = [(name, torch.randn(size)) for name, size in [("a", 5), ("b", 40), ("c", 3), ("d", 1)]]
CONTENT = b"".join(as_bytes(tensor).numpy().tobytes() for _, tensor in WEIGHTS)
UPDATE = ["/start_weight_update", "/update_weights", "/finish_weight_update"]
AFTERWARDS = ["/reset_prefix_cache", "/resume"]


@dataclass
class HostGpu:
    """This process's memory in the place of a device."""

    arrives: Callable[[], bool] = lambda: True
    """Whether a broadcast comes to its end."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    uuid: str = "GPU-host"
    stream: int = 0
    shared: list[torch.Tensor] = field(default_factory=list)

    def enter_thread(self) -> None: ...

    def synchronize(self) -> None: ...

    def collect(self) -> None: ...

    def mark(self) -> Callable[[], bool]:
        return self.arrives

    def share(self, buffer: torch.Tensor) -> tuple:
        self.shared.append(buffer)
        return ("handle", len(self.shared))


@dataclass
class Server:
    """One server: what it was asked, and which route it fails at."""

    workers: int = 1
    fails_at: str | None = None
    hangs_at: str | None = None
    gpu: HostGpu | None = None
    routes: list[str] = field(default_factory=list)
    bodies: dict[str, list[Any]] = field(default_factory=dict)
    read: bytes = b""
    woken: threading.Event = field(default_factory=threading.Event)

    def __call__(self, request):
        self.routes.append(request.route)
        self.bodies.setdefault(request.route, []).append(request.body)
        if request.route == self.fails_at:
            return 500, {"error": "worker died"}
        if request.route == self.hangs_at:
            self.woken.wait(20)
        if request.route == "/get_world_size":
            return 200, {"world_size": self.workers}
        if request.route == "/update_weights" and self.gpu is not None:
            size = sum(request.body["update_info"]["tensor_sizes"])
            self.read += self.gpu.shared[-1][:size].numpy().tobytes()
        return 200, {"success": True}


@contextlib.contextmanager
def served(*servers: Server) -> Iterator[list[ServerControl]]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(one_rank())
        urls = [stack.enter_context(answering(server)) for server in servers]
        yield [ServerControl(url, timeout_s=20) for url in urls]


@pytest.fixture
def calls(tmp_path, monkeypatch):
    with nccl_double(tmp_path, monkeypatch) as calls:
        yield calls


class ListedWeights:
    """`WEIGHTS` as a source takes them."""

    tensors = tuple(TensorFacts(name, value.dtype, tuple(value.shape)) for name, value in WEIGHTS)
    num_bytes = len(CONTENT)

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        return iter(WEIGHTS)


def source() -> PolicySource:
    return PolicySource(ListedWeights())


def kinds(lines: list[str]) -> list[str]:
    return [line.split()[0] for line in lines]


def broadcast_bytes(lines: list[str]) -> bytes:
    return b"".join(bytes.fromhex(line.split()[-1]) for line in lines if "broadcast" in line)


def test_nccl_transfer_joins_once_and_sends_every_sync(calls):
    servers = [Server(workers=2), Server()]
    with served(*servers) as controls:
        transfer = NcclTransfer(source(), HostGpu(), 64, timeout_s=20)
        for version in (1, 2):
            assert transfer.send(controls, version) == (len(CONTENT), ())
        transfer.close()
    assert kinds(calls()) == ["init", "all_reduce", *["broadcast"] * 4, "abort"]
    assert calls()[0] == "init 4 0"
    assert broadcast_bytes(calls()) == CONTENT * 2
    for server, offset in zip(servers, (1, 3), strict=True):
        (told,) = server.bodies["/init_weight_transfer_engine"]
        assert told["init_info"]["rank_offset"] == offset
        assert told["init_info"]["world_size"] == 4
        joining = ["/get_world_size", "/init_weight_transfer_engine"]
        assert server.routes == [
            *["/pause", *joining, *UPDATE, *AFTERWARDS],
            *["/pause", *UPDATE, *AFTERWARDS],
        ]
        versions = [body["weight_version"] for body in server.bodies["/finish_weight_update"]]
        assert versions == ["1", "2"]
        assert server.bodies["/update_weights"][0]["update_info"]["names"] == list("abcd")


def test_nccl_transfer_leaves_out_a_server_that_failed_before(calls):
    bad, good = Server(workers=2, fails_at="/start_weight_update"), Server()
    with served(bad, good) as controls:
        transfer = NcclTransfer(source(), HostGpu(), 64, timeout_s=20)
        _, failed = transfer.send(controls, 1)
        transfer.close()
    assert failed == (controls[0].url,)
    assert [line for line in calls() if "init" in line] == ["init 4 0", "init 2 0"]
    assert broadcast_bytes(calls()) == CONTENT
    assert good.routes[-len(AFTERWARDS) :] == AFTERWARDS
    assert "/shutdown_weight_transfer_engine" in good.routes


def test_nccl_transfer_leaves_out_a_server_that_cannot_join(calls):
    bad, good = Server(fails_at="/init_weight_transfer_engine"), Server()
    with served(bad, good) as controls:
        _, failed = NcclTransfer(source(), HostGpu(), 64, timeout_s=20).send(controls, 1)
    assert failed == (controls[0].url,)
    assert broadcast_bytes(calls()) == CONTENT


def test_nccl_transfer_ends_if_a_server_dies_in_the_broadcast(calls):
    bad, left = Server(fails_at="/update_weights"), Server(hangs_at="/update_weights")
    with served(bad, left) as controls:
        transfer = NcclTransfer(source(), HostGpu(arrives=lambda: False), 64, timeout_s=60)
        threading.Timer(2, left.woken.set).start()  # When NCCL was told to give up.
        _, failed = transfer.send(controls, 1)
        assert set(failed) == {control.url for control in controls}
        assert kinds(calls())[-1] == "abort"
        assert "/resume" not in bad.routes + left.routes


def test_nccl_transfer_shows_the_words_of_nccl(calls):
    server = Server(workers=12)  # The library refuses groups of 13.
    with served(server) as controls, pytest.raises(NcclFailure, match="invalid usage") as failure:
        NcclTransfer(source(), HostGpu(), 64, timeout_s=20).send(controls, 1)
    assert failure.value.common
    assert exit_status(failure.value) == UNUSABLE


def test_nccl_transfer_introduces_a_restarted_server_again(calls):
    server = Server()
    with served(server) as controls:
        transfer = NcclTransfer(source(), HostGpu(), 64, timeout_s=20)
        transfer.send(controls, 1)
        transfer.forget(controls)
        transfer.send(controls, 2)
        transfer.close()
    assert kinds(calls()).count("init") == 2
    # It is another process, which has nothing to end.
    assert "/shutdown_weight_transfer_engine" not in server.routes


def test_ipc_transfer_shares_a_bucket_before_announcing_it():
    gpu = HostGpu()
    good, bad = Server(gpu=gpu), Server(gpu=gpu, fails_at="/update_weights")
    with served(good, bad) as controls:
        transfer = IpcTransfer(source(), gpu, 64, timeout_s=20)
        num_bytes, failed = transfer.send(controls, 1)
        assert (num_bytes, failed) == (len(CONTENT), (controls[1].url,))
        assert good.read == CONTENT
        transfer.send(controls[:1], 2)
    assert good.read == CONTENT * 2
    assert good.bodies["/init_weight_transfer_engine"] == [{"init_info": {"packed": True}}]
    infos = [body["update_info"] for body in good.bodies["/update_weights"]]
    assert len(infos) == 2 * 3
    handles = [pickle.loads(base64.b64decode(info["ipc_handles_pickled"])) for info in infos]
    assert handles == [{"GPU-host": ("handle", number)} for number in (1, 1, 1, 2, 2, 2)]
    # Room for the largest tensor, though a bucket is smaller.
    assert gpu.shared[0].numel() == 160
