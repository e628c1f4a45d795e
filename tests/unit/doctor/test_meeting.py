"""Ranks that meet at a store, and hosts that look at each other."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from megatron_resrl.doctor.examination import Host
from megatron_resrl.doctor.facts.between_hosts import BetweenFacts, gather_between, neighbours
from megatron_resrl.doctor.facts.gpus import Gpu, GpuFacts
from megatron_resrl.doctor.facts.software import SoftwareFacts, Torch
from megatron_resrl.doctor.meeting import Meeting, RankZeroAbsent, alone, join
from megatron_resrl.doctor.records import restored
from megatron_resrl.doctor.rules.between_hosts import judge_between
from megatron_resrl.errors import InputError


def meetings(count: int) -> list[Meeting]:
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    clients = [TCPStore("127.0.0.1", server.port, is_master=False) for _ in range(count - 1)]
    return [Meeting(store, rank, count) for rank, store in enumerate([server, *clients])]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_meeting_names_those_that_came():
    first, second, _ = meetings(3)
    with ThreadPoolExecutor() as threads:
        others = threads.submit(second.roll, "b", 10)
        came = first.roll("a", 1)
    assert came == others.result() == {0: "a", 1: "b"}


def test_meeting_collects_what_is_there_when_the_time_is_out():
    first, second = meetings(2)
    second.write_own("found", {"x": 1})
    assert first.collect("found", [0, 1], 0.1) == {1: {"x": 1}}
    assert second.read("nothing", 0.1) is None


def test_meeting_without_rank_zero_says_where_it_was_expected():
    (_, second) = meetings(2)
    with pytest.raises(RankZeroAbsent, match=r"did not answer within 0.* s"):
        second.roll("b", 0.1)
    port = free_port()
    environment = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    with pytest.raises(RankZeroAbsent, match=f"nobody listens at 127.0.0.1:{port}"):
        join(environment | {"MASTER_PORT": str(port)}, 1)


def test_meeting_at_a_port_that_is_taken_is_refused():
    with socket.create_server(("", 0)) as server:
        port = str(server.getsockname()[1])
        environment = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        with pytest.raises(InputError, match=f"MASTER_PORT = {port}: another process"):
            join(environment | {"MASTER_PORT": port}, 1)


def test_meeting_of_one_process_needs_no_store():
    board = alone()
    assert board.roll("here", 1) == {0: "here"}
    assert board.read("nothing", 1) is None


def test_records_come_back_from_json():
    host = Host(
        software=SoftwareFacts(versions={"torch": None}, torch=Torch("2.13", cuda="12.8")),
        gpus=GpuFacts(gpus=[Gpu(0, "x", processes=[(1, "python", 2)], fabric=("Completed", ""))]),
        between=BetweenFacts(locks={"flock": "holds"}),
    )
    assert restored(Host, json.loads(json.dumps(dataclasses.asdict(host)))) == host


SECOND_HOST = """
import dataclasses, json, sys
from torch.distributed import TCPStore
from megatron_resrl.doctor.facts.between_hosts import gather_between
from megatron_resrl.doctor.meeting import Meeting
store = TCPStore("127.0.0.1", int(sys.argv[2]), is_master=False)
facts = gather_between(Meeting(store, 1, 2), {0: "a", 1: "b"}, sys.argv[1], visible_s=0.5)
print(json.dumps(dataclasses.asdict(facts)))
"""


def can_mount() -> bool:
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def look(folders: list[Path], usable: tuple[bool, ...] = (True, True, True)) -> dict:
    """What hosts find out together, each with a folder of its own."""
    hosts = {rank: f"h{rank}" for rank in range(len(folders))}
    with ThreadPoolExecutor() as threads:
        found = [
            threads.submit(
                *(gather_between, meeting, hosts, str(folder)), usable=fine, visible_s=0.5
            )
            for meeting, folder, fine in zip(
                meetings(len(folders)), folders, usable[: len(folders)], strict=True
            )
        ]
        return {f"h{rank}": each.result() for rank, each in enumerate(found)}


def test_hosts_that_share_a_folder_are_fine(tmp_path: Path):
    found = look([tmp_path] * 3)
    # Threads of one process: only flock keeps them out, fcntl's locks belong to the process.
    for facts in (found["h1"], found["h2"]):
        assert facts.locks["flock"] == "holds"
        facts.locks["lockf"] = "holds"
    assert [facts.created for facts in found.values()].count(True) == 1
    assert list(judge_between(found, "/out")) == []
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not can_mount(), reason="needs the right to mount file systems")
def test_hosts_that_see_another_disk_are_named(tmp_path: Path):
    """The second host has another file system under the same path."""
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    first, port = Meeting(server, 0, 2), server.port
    script = shlex.join([sys.executable, "-c", SECOND_HOST, str(tmp_path), str(port)])
    second = subprocess.Popen(
        ["unshare", "-m", "sh", "-ec", f"mount -t tmpfs none {tmp_path}; exec {script}"],
        stdout=subprocess.PIPE,
        text=True,
    )
    hosts = {0: "a", 1: "b"}
    facts = {"a": gather_between(first, hosts, str(tmp_path), visible_s=0.5)}
    facts["b"] = BetweenFacts(**json.loads(second.communicate(timeout=600)[0]))
    (found,) = judge_between(facts, "/out")
    assert (found.rule, found.where) == ("hosts.folder_not_shared", "host b")


def test_hosts_whose_first_one_cannot_use_the_folder_say_so(tmp_path: Path):
    found = look([tmp_path, tmp_path], usable=(False, True))
    assert {each.rule for each in judge_between(found, "/out")} == {"hosts.folder"}


@pytest.mark.parametrize(
    ("facts", "rule"),
    [
        ({"clock_ahead_s": 5.0}, "hosts.clock"),
        ({"clock_ahead_s": 2.5, "clock_error_s": 1.0}, None),
        ({"visible_after_s": 12.0}, "hosts.folder_late"),
        ({"locks": {"flock": "does not hold"}}, "hosts.lock"),
        ({"created": True}, "hosts.exclusive"),
        ({"unreachable": {"a": "a:9: timed out"}}, "hosts.unreachable"),
        ({"unresolved": {"a": "a: Name or service not known"}}, "hosts.name"),
    ],
)
def test_hosts_have_one_finding_for_one_fault(facts, rule):
    fine = {"visible_after_s": 0.0, "created": False}
    by_host = {"a": BetweenFacts(visible_after_s=0.0, created=True)}
    by_host["b"] = BetweenFacts(**(fine | facts))
    assert [each.rule for each in judge_between(by_host, "/o")] == ([rule] if rule else [])


def test_hosts_that_cannot_be_reached_are_found(tmp_path: Path):
    """The second host publishes a port that nobody serves, and the third an unknown name."""
    boards = meetings(3)
    for rank, name in ((1, "127.0.0.1"), (2, "no-such-host.invalid")):
        for key in ("clock_ready", "connected", "looked", "raced"):
            boards[rank].write_own(key, False)
        boards[rank].write_own("port", [name, free_port()])
    found = gather_between(boards[0], {0: "a", 1: "b", 2: "c"}, str(tmp_path), visible_s=0.1)
    assert "Connection refused" in found.unreachable["b"]
    assert "no-such-host.invalid" in found.unresolved["c"]


def test_neighbours_of_many_hosts_are_few_and_reach_all():
    assert neighbours(1, 4) == [0, 2, 3]
    assert len(neighbours(5, 64)) == 6
    assert {other for host in range(64) for other in neighbours(host, 64)} == set(range(64))
