"""`doctor` with real ranks, on machines that are really ill."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from megatron_resrl.doctor.facts.measured import Measured, Request, measured_of
from megatron_resrl.doctor.facts.rank import RankFacts
from megatron_resrl.doctor.rules.links import judge_links, judge_sums, judge_unfinished

REPOSITORY = Path(__file__).resolve().parents[3]
DOCTOR = [sys.executable, "-m", "megatron_resrl", "doctor"]


def start(command: list[str], **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | variables,
    )


def succeeds(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def test_doctor_names_a_rank_that_is_absent_and_what_differs(tmp_path: Path):
    """Two hosts, as Slurm names them, of a job of three ranks; the third does not come."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"LOCAL_RANK": "0", "NCCL_PROTO": "Simple"}
    command = [*DOCTOR, "--quick", "--json", "--wait", "20", "--output_dir", str(tmp_path)]
    ranks = [
        start(command, **shared, RANK="0", SLURMD_NODENAME="n1"),
        start(command, **shared | {"NCCL_PROTO": "LL"}, RANK="1", SLURMD_NODENAME="n2"),
    ]
    (out, err), (silent, _) = (rank.communicate(timeout=600) for rank in ranks)
    assert [rank.returncode for rank in ranks] == [1, 1], err
    assert silent == ""
    said = json.loads(out)
    problems = {each["rule"]: each for each in said["findings"] if each["severity"] == "wrong"}
    assert problems["ranks.absent"]["where"] == "rank 2"
    different = problems["environment.differs"]["problem"]
    assert "'Simple' on rank 0 (host n1, local rank 0); 'LL' on rank 1 (host n2, " in different
    # What the two hosts found out together.
    between = said["hosts"]["n2"]["between"]
    assert between["visible_after_s"] is not None
    assert between["locks"] == {"flock": "holds", "lockf": "holds"}
    assert not between["unreachable"]
    assert abs(between["clock_ahead_s"]) < 60
    assert not {each for each in problems if each.startswith("hosts.")}
    # What the two ranks measured without the third.
    assert [each["bytes"] for each in said["all_reduces"]][:2] == [4, 1024]
    assert all(0 < each["bus_bandwidth"] < 1e12 for each in said["all_reduces"])
    (link,) = said["links"]
    assert link["ranks"] == [0, 1]
    assert link["bandwidth"] > 0
    assert [each["rank"] for each in said["matrix_products"]] == [0, 1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    not succeeds("unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"),
    reason="needs the right to mount file systems",
)
def test_doctor_names_every_fault_of_a_host(tmp_path: Path):
    """64 MB of shared memory, as in a container; few open files; a full disk; port 29500 taken."""
    script = f"""
        mount -t tmpfs -o size=64m none /dev/shm
        mount -t tmpfs -o size=2m none {tmp_path}
        head -c 2M /dev/zero > {tmp_path}/rest || true
        ulimit -S -n 512
        exec {" ".join(DOCTOR)} --quick --output_dir {tmp_path}
    """
    with contextlib.suppress(OSError), socket.create_server(("", 29500)):
        ended = start(["unshare", "-m", "sh", "-ec", script], CUDA_LAUNCH_BLOCKING="1")
        out, err = ended.communicate(timeout=600)
    assert ended.returncode == 1, err
    for words in (
        "/dev/shm has 67.1 MB: NCCL and data loaders need more; make it larger",
        "a process may open 512 files, and 1 ranks need 1032; run ulimit -n 1032",
        f"{tmp_path} cannot be used (No space left on device)",
        "another process listens at port 29500",
        "CUDA_LAUNCH_BLOCKING is 1: the host waits for every kernel",
    ):
        assert words in out
    assert "WRONG host " in out


def test_doctor_runs_where_torch_cannot_be_imported(tmp_path: Path):
    """As with CUDA libraries of another version in LD_LIBRARY_PATH."""
    (tmp_path / "torch").mkdir()
    error = 'raise ImportError("libcudart.so.12: cannot open shared object file")'
    (tmp_path / "torch" / "__init__.py").write_text(error)
    command = [*DOCTOR, "--quick", "--json", "--output_dir", str(tmp_path)]
    ended = start(command, PYTHONPATH=f"{tmp_path}:{REPOSITORY}")
    out, err = ended.communicate(timeout=600)
    assert ended.returncode == 1, err
    found = {each["rule"]: each["problem"] for each in json.loads(out)["findings"]}
    assert "cannot be imported (ImportError: libcudart.so.12" in found["software.import"]
    assert found["links.unfinished"].startswith("the import of torch did not come to its end")


@contextlib.contextmanager
def network(hosts: int) -> Iterator[list[str]]:
    """Network namespaces, one for each host, on a bridge; addresses 10.231.0.1 and on.

    Yields:
        Their names.
    """
    names = [f"doctor{os.getpid()}-{number}" for number in range(hosts)]
    switch = names[0]

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", switch, "link", "add", "switch", "type", "bridge")
        ip("-n", switch, "link", "set", "switch", "up")
        for number, name in enumerate(names):
            port = f"port{number}"
            ip("-n", switch, "link", "add", port, "type", "veth", "peer", "card", "netns", name)
            ip("-n", switch, "link", "set", port, "master", "switch", "up")
            ip("-n", name, "address", "add", f"10.231.0.{number + 1}/24", "dev", "card")
            ip("-n", name, "link", "set", "card", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.mark.skipif(
    not (
        shutil.which("tc") and succeeds("unshare", "-n", "ip", "link", "add", "x", "type", "veth")
    ),
    reason="needs the right to make network namespaces, with ip and tc",
)
def test_doctor_names_the_host_behind_slow_links():
    """Four hosts with real network cards, of which one sends 20 Mbit/s and the others 200.

    Without a limit of its own a link would be as fast as the machine is idle.
    """
    with network(4) as hosts:
        for host in hosts:
            rate = 20 if host == hosts[2] else 200
            limit = f"tc qdisc add dev card root tbf rate {rate}mbit burst 64kb latency 4s"
            subprocess.run(["ip", "netns", "exec", host, *limit.split()], check=True)
        port = 29400
        serve = "import sys, torch.distributed as d; s = d.TCPStore('10.231.0.1', int(sys.argv[1]),"
        serve += " is_master=True, wait_for_workers=False); print(flush=True); sys.stdin.read()"
        inside = ["ip", "netns", "exec"]
        store = subprocess.Popen(
            [*inside, hosts[0], sys.executable, "-c", serve, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            store.stdout.readline()
            ranks = []
            for index, host in enumerate(hosts):
                request = Request(
                    *(list(range(4)), hosts, index, "10.231.0.1", port, "links", True, 60.0)
                )
                command = [*inside, host, sys.executable, "-m", "megatron_resrl.doctor.measure"]
                ranks.append(start([*command, request.to_json()], GLOO_SOCKET_IFNAME="card"))
            ended = [rank.communicate(timeout=600) for rank in ranks]
        finally:
            store.communicate()
    measured: dict[int, Measured] = {}
    for rank, (out, err) in enumerate(ended):
        objects = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        failure = None if ranks[rank].returncode == 0 else err
        measured[rank] = measured_of(objects, failure)
    places = {rank: RankFacts(rank, 0, host) for rank, host in enumerate(hosts)}
    assert list(judge_unfinished(measured, places)) == []
    assert list(judge_sums(measured)) == []
    for facts in measured.values():
        # These are as long as the machine is busy.
        facts.links[:] = [link | {"latency_s": 1e-3} for link in facts.links]
    found = list(judge_links(measured, places))
    assert [each.where for each in found] == [f"host {hosts[2]}"]


def test_doctor_measure_of_a_rank_whose_peer_is_gone_says_where():
    """The other rank never joins: what was measured before stays."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    request = Request([0, 4], ["a", "b"], 0, "127.0.0.1", store.port, "links", True, 2.0)
    rank = start([sys.executable, "-m", "megatron_resrl.doctor.measure", request.to_json()])
    out, err = rank.communicate(timeout=600)
    assert rank.returncode == 1
    objects = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    facts = measured_of(objects, err[-200:])
    assert facts.flops > 0
    (found,) = judge_unfinished({0: facts}, {0: RankFacts(0, 0, "a")})
    assert found.problem.startswith("the start of the process group did not come to its end")
