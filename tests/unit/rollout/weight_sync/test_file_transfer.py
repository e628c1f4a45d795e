"""Buckets in files: what is written, what happens without room, and what is left."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from answering import free_port
from kept_files import KeptFiles

from megatron_resrl.errors import InputError
from megatron_resrl.rollout.weight_sync.control import ServerControl
from megatron_resrl.rollout.weight_sync.file_transfer import FileTransfer
from megatron_resrl.rollout.weight_sync.last_sent import LastSent


class _Taker(BaseHTTPRequestHandler):
    """Takes weights like a server, or dies at a bucket: a real socket either way."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "null")
        route = self.path.partition("?")[0]
        self.server.routes.append(route)
        if route == "/update_weights":
            path = Path(body["update_info"]["path"])
            self.server.modes.append(path.parent.stat().st_mode & 0o777)
            if len(self.server.buckets) == self.server.dies_at:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.server.buckets.append(self.server.kept.load(path))
            self.server.on_disk.append(len(list(path.parent.iterdir())))
        answer = b'{"success": true}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def takers() -> Iterator[list[ThreadingHTTPServer]]:
    """Two servers that take weights; `dies_at` says at which bucket one breaks the connection."""
    servers = []
    for _ in range(2):
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Taker)
        server.routes, server.buckets, server.modes, server.on_disk = [], [], [], []
        server.kept = KeptFiles()
        server.dies_at = None
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
    yield servers
    for server in servers:
        server.shutdown()
        server.server_close()


def _control(server: ThreadingHTTPServer) -> ServerControl:
    return ServerControl(f"http://127.0.0.1:{server.server_port}", timeout_s=10)


def _weights() -> dict[str, torch.Tensor]:
    shared = torch.arange(12.0)
    # q, k and v may be views of one parameter.
    return {"a": shared[:4], "b": shared[4:], "same": shared[:4], "c": torch.ones(3, 5).T}


def _send(transfer: FileTransfer, servers: list, weights: dict | None = None):
    stream = iter((weights or _weights()).items())
    sent = transfer.send([_control(server) for server in servers], stream, 7, model_bytes=10**3)
    assert next(stream, None) is None  # read to its end
    return sent


@pytest.mark.parametrize("bucket_bytes", [1, 40, 10**6])
def test_file_transfer_sends_all_tensors_with_any_bucket_size(takers, tmp_path, bucket_bytes):
    size, failed = _send(FileTransfer(tmp_path, bucket_bytes, timeout_s=10), takers)
    assert (size.weights, failed) == ((4 + 8 + 4 + 15) * 4, ())
    for taker in takers:
        taken = {name: t for bucket in taker.buckets for name, t in bucket.items()}
        assert taken.keys() == _weights().keys()
        assert all(torch.equal(taken[name], value) for name, value in _weights().items())
        assert max(taker.on_disk) <= 2


def test_file_transfer_sends_what_has_changed_and_counts_it(takers, tmp_path):
    last_sent = LastSent({"c": "also"}, keep=True)
    transfer = FileTransfer(tmp_path, 40, timeout_s=10, last_sent=last_sent)
    first, _ = _send(transfer, takers)
    assert (first.compared, first.changed) == (0, 0)
    assert first.sent >= first.weights
    changed = _weights()
    changed["b"] = torch.cat([torch.tensor([-0.0, float("nan")]), changed["b"][2:]])
    transfer.in_full = False
    second, failed = _send(transfer, takers, changed)
    assert failed == ()
    # Two values differ, in their two upper bytes alone: a place and a value of each.
    assert (second.compared, second.changed, second.sent) == (first.weights, 2 * 2, 2 * 6)
    for taker in takers:
        taken = {name: t for bucket in taker.buckets for name, t in bucket.items()}
        assert taken.keys() == {*changed, "also"}
        bits = {name: value.contiguous().view(torch.int32) for name, value in changed.items()}
        assert all(torch.equal(taken[name].view(torch.int32), bits[name]) for name in bits)
        assert taker.kept.identities() == last_sent.identities()


def test_file_transfer_pauses_resets_the_cache_and_resumes(takers, tmp_path):
    _send(FileTransfer(tmp_path, 10**6, timeout_s=10), takers[:1])
    assert takers[0].routes == [
        "/pause",
        "/start_weight_update",
        "/update_weights",
        "/finish_weight_update",
        "/reset_prefix_cache",
        "/resume",
    ]


def test_file_transfer_reports_a_server_that_dies(takers, tmp_path):
    takers[0].dies_at = 1
    _, failed = _send(FileTransfer(tmp_path, 1, timeout_s=10), takers)
    assert failed == (_control(takers[0]).url,)
    assert len(takers[0].buckets) == 1
    assert "/finish_weight_update" not in takers[0].routes
    assert len(takers[1].buckets) == 4
    assert takers[1].routes[-1] == "/resume"


def test_file_transfer_reads_all_weights_without_servers(tmp_path):
    closed = ServerControl(f"http://127.0.0.1:{free_port()}", timeout_s=10)
    stream = iter(_weights().items())
    transfer = FileTransfer(tmp_path, 1, timeout_s=10)
    size, failed = transfer.send([closed], stream, 7, model_bytes=10**3)
    assert failed == (closed.url,)
    assert (size.weights, size.sent) == ((4 + 8 + 4 + 15) * 4, 0)
    assert next(stream, None) is None


def test_file_transfer_leaves_nothing_and_is_private(takers, tmp_path):
    _send(FileTransfer(tmp_path, 40, timeout_s=10), takers)
    assert not list(tmp_path.iterdir())
    assert set(takers[0].modes) == {0o700}


def test_file_transfer_removes_files_of_killed_trainers_alone(takers, tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    prefix = f"megatron-resrl-weights-{socket.gethostname()}-"
    killed, living = tmp_path / f"{prefix}{ended.pid}-a1", tmp_path / f"{prefix}{os.getppid()}-b2"
    elsewhere = tmp_path / f"megatron-resrl-weights-another-host-{ended.pid}-c3"
    for folder in (killed, living, elsewhere):
        folder.mkdir()
        (folder / "00000.safetensors").write_bytes(b"weights")
    _send(FileTransfer(tmp_path, 40, timeout_s=10), takers)
    assert sorted(tmp_path.iterdir()) == sorted([living, elsewhere])


def test_file_transfer_leaves_nothing_after_an_error(takers, tmp_path):
    def broken() -> Iterator[tuple[str, torch.Tensor]]:
        yield from _weights().items()
        raise RuntimeError("export")

    transfer = FileTransfer(tmp_path, 1, timeout_s=10)
    with pytest.raises(RuntimeError, match="export"):
        transfer.send([_control(takers[0])], broken(), 0, model_bytes=10)
    assert not list(tmp_path.iterdir())


def test_file_transfer_names_a_full_directory(takers, tmp_path):
    transfer = FileTransfer(tmp_path, 2**60, timeout_s=10)
    with pytest.raises(InputError, match=r"vllm\.transfer_dir .* MB free .*vllm\.bucket_bytes"):
        transfer.send([_control(takers[0])], iter(()), 0, model_bytes=2**60)
    assert not takers[0].routes


def test_file_transfer_names_a_missing_directory(takers, tmp_path):
    transfer = FileTransfer(tmp_path / "none", 10, timeout_s=10)
    with pytest.raises(InputError, match=r"vllm\.transfer_dir is .*none"):
        transfer.send([_control(takers[0])], iter(()), 0, model_bytes=10)
