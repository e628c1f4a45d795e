"""Nodes of a cluster on one host: each has a network, a host name and disks of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ranks import REPOSITORY

_SUBNET = "10.213.7"
_ENTER = 'hostname "$1" && for d in $2; do mount -t tmpfs tmpfs "$d"; done && shift 2 && exec "$@"'
"""A namespace has a network of its own; host name and disks are made for each process."""


@dataclass
class SimulatedNode:
    """One node."""

    name: str
    address: str
    namespace: str
    own_disks: tuple[Path, ...] = ()
    """Directories that other nodes do not see, each process its own."""
    _processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(
        self, log: Path, arguments: Sequence[str], environment: Mapping[str, str]
    ) -> subprocess.Popen[str]:
        """Starts Python with `arguments` on the node; what it says is appended to `log`."""
        disks = " ".join(map(str, self.own_disks))
        command = ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "--mount"]
        command += ["bash", "-c", _ENTER, "bash", self.name, disks, sys.executable, *arguments]
        path = [str(REPOSITORY), str(REPOSITORY / "tests")]
        variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path)}
        variables |= {"PYTHONUNBUFFERED": "1", "GLOO_SOCKET_IFNAME": "eth0"}
        with log.open("a") as output:
            process = subprocess.Popen(
                command,
                env=os.environ | variables | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=REPOSITORY,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def run(self, *command: str) -> str:
        """Runs a command on the node's network. Returns what it prints."""
        inside = ["ip", "netns", "exec", self.namespace, *command]
        return subprocess.run(inside, capture_output=True, text=True, check=True).stdout

    def pids(self) -> list[str]:
        """Processes that run on the node."""
        return _succeeded("ip", "netns", "pids", self.namespace).split()

    def kill(self) -> None:
        """Kills everything that runs on the node, as if its power were cut."""
        while pids := self.pids():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.1)
        for process in self._processes:
            process.wait()


@contextlib.contextmanager
def simulated_nodes(*names: str) -> Iterator[list[SimulatedNode]]:
    """Nodes that reach each other by a switch; everything on them is killed with the block.

    Skips the test where namespaces cannot be made.
    """
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("network namespaces need root and the command ip")
    mark = f"resrl-{secrets.token_hex(3)}"
    switch = f"{mark}-switch"
    nodes = [
        SimulatedNode(name, f"{_SUBNET}.{number}", f"{mark}-{name}")
        for number, name in enumerate(names, start=1)
    ]
    try:
        try:
            _succeeded("ip", "netns", "add", switch)
            _in(switch, "link add switch type bridge")
            _in(switch, "link set switch up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces cannot be made here: {error.stderr.strip()}")
        for number, node in enumerate(nodes):
            _succeeded("ip", "netns", "add", node.namespace)
            _in(switch, f"link add port{number} type veth peer eth0 netns {node.namespace}")
            _in(switch, f"link set port{number} master switch up")
            _in(node.namespace, f"addr add {node.address}/24 dev eth0")
            _in(node.namespace, "link set eth0 up")
            _in(node.namespace, "link set lo up")
            _in(node.namespace, "route add default dev eth0")  # vLLM asks which way leads out.
        yield nodes
    finally:
        for node in nodes:
            with contextlib.suppress(subprocess.CalledProcessError):
                node.kill()
        for namespace in (*(node.namespace for node in nodes), switch):
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)


def ended(processes: Mapping[str, subprocess.Popen[str]], timeout_s: float) -> dict[str, int]:
    """Exit statuses; of processes that do not end in time, a failure that names them."""
    until = time.monotonic() + timeout_s
    statuses = {}
    for name, process in processes.items():
        try:
            statuses[name] = process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            pytest.fail(f"{name} did not end within {timeout_s} s")
    return statuses


def _in(namespace: str, command: str) -> None:
    _succeeded("ip", "-n", namespace, *command.split())


def _succeeded(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
