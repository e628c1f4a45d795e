"""Process 1 of a Slurm cluster in namespaces of its own; `cluster.py` starts it and talks to it.

    cluster_init.py FOLDER NODE ...

It brings up the network, munge and the controller, then obeys lines from standard input:
`start NODE` and `cut NODE`, each answered by `done`. When the other end of standard input is
closed, this process ends, and the kernel ends every process and every mount of the cluster.

A node is a host name, a network interface and process numbers of its own. Its power is cut by
unplugging the network and killing its first process: other nodes hear nothing of it.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
from pathlib import Path

BRIDGE = "cluster"
CONTROLLER = "10.77.0.1"
NODE = """
hostname "$0"
mount -t tmpfs tmpfs /dev/shm
slurmd -D -N "$0" &   # beside a shell as process 1, which adopts and reaps what jobs leave
wait
"""


def address(index: int) -> str:
    """Of the node with this index, from 0."""
    return f"10.77.0.{11 + index}"


def call(*command: object) -> None:
    """Runs a command that must succeed."""
    subprocess.run([str(word) for word in command], check=True)


def make_network(folder: Path, nodes: list[str]) -> None:
    """One bridge, and a network namespace per node that is plugged into it."""
    call("mount", "--bind", folder / "etc" / "hosts", "/etc/hosts")
    call("mount", "--bind", folder / "etc" / "resolv.conf", "/etc/resolv.conf")
    call("mount", "-t", "tmpfs", "tmpfs", "/run")
    call("ip", "link", "set", "lo", "up")
    call("ip", "link", "add", BRIDGE, "type", "bridge")
    call("ip", "addr", "add", f"{CONTROLLER}/24", "dev", BRIDGE)
    call("ip", "link", "set", BRIDGE, "up")
    for index, node in enumerate(nodes):
        call("ip", "netns", "add", node)
        call("ip", "link", "add", node, "type", "veth", "peer", "name", "eth0", "netns", node)
        call("ip", "-n", node, "addr", "add", f"{address(index)}/24", "dev", "eth0")
        call("ip", "-n", node, "link", "set", "lo", "up")
        call("ip", "-n", node, "link", "set", "eth0", "up")
        call("ip", "link", "set", node, "master", BRIDGE)


def mount_disk(folder: Path) -> None:
    """A small file system that all nodes share, and that can be full."""
    call("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder / "disk")


def start_services(folder: Path) -> None:
    """Munge and the controller."""
    munge = Path("/run/munge")  # Not below the folder: munge wants it within everybody's reach.
    munge.mkdir(mode=0o755)
    key = munge / "key"
    key.touch(mode=0o400)
    key.write_bytes(secrets.token_bytes(128))
    own = [f"--key-file={key}", f"--seed-file={munge / 'seed'}"]
    call("munged", *own, f"--log-file={folder / 'log' / 'munged'}", "--num-threads=2")
    subprocess.Popen(["slurmctld", "-D", "-c"], stdin=subprocess.DEVNULL)


def start_node(node: str) -> subprocess.Popen:
    """Plugs a node in and starts its slurmd."""
    call("ip", "link", "set", node, "up")
    own = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command = ["nsenter", f"--net=/run/netns/{node}", *own, "bash", "-c", NODE, node]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL)


def cut_node(node: str, process: subprocess.Popen) -> None:
    """Takes a node's power away."""
    call("ip", "link", "set", node, "down")
    process.kill()
    process.wait()


def main() -> None:
    folder, nodes = Path(sys.argv[1]), sys.argv[2:]
    call("hostname", "controller")
    make_network(folder, nodes)
    mount_disk(folder)
    start_services(folder)
    running: dict[str, subprocess.Popen] = {}
    answers = sys.stdout
    print("done", file=answers, flush=True)
    for line in sys.stdin:
        order, node = line.split()
        if order == "start":
            running[node] = start_node(node)
        else:
            cut_node(node, running.pop(node))
        print("done", file=answers, flush=True)


if __name__ == "__main__":
    main()
