"""A real Slurm of several nodes on this host, for as long as a block runs.

munge, slurmctld and one slurmd per node run in namespaces of their own (`cluster_init.py`): their
ports, host names, processes and mounts do not exist outside, and nothing of them is left when this
process ends, however it ends. What they write is below one folder.

Needs root and Debian's packages slurmctld, slurmd, slurm-client, munge and iproute2.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from ranks import REPOSITORY
from slurm import cluster_init

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "ip", "nsenter", "unshare")
NODES = ("n1", "n2", "n3", "n4")
GPUS = 2
"""Of each node: character devices that nobody opens."""
CONTROLLER_PORT, NODE_PORT = 6817, 6818
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")

CONFIGURATION = """\
ClusterName=test
SlurmctldHost=controller({controller})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job starts only when its old credentials have expired: 120 s by default.
AuthInfo=cred_expire=5
CredType=cred/munge
SlurmctldPort={controller_port}
SlurmctldPidFile={folder}/pid.slurmctld
SlurmctldLogFile={folder}/log/slurmctld
SlurmdPidFile={folder}/pid.%n
SlurmdLogFile={folder}/log/%n
SlurmdSpoolDir={folder}/spool/%n
StateSaveLocation={folder}/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
JobRequeue=1
KillWait=30
SlurmdTimeout=10
MinJobAge=3600
CompleteWait=0
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=2,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MailProg=/bin/true
PropagateResourceLimits=NONE
GresTypes=gpu
NodeName=DEFAULT CPUs=64 RealMemory=64000 Gres=gpu:{gpus} State=UNKNOWN
{nodes}
PartitionName=main Nodes=ALL Default=YES DefaultTime=60 PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=spare Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=120 State=UP
"""


def obstacle() -> str | None:
    """Why there can be no cluster here; None: there can."""
    lacking = [name for name in PROGRAMS if shutil.which(name, path=_search_path()) is None]
    if lacking:
        return f"needs {', '.join(lacking)}: `tools/install.sh slurm` installs Debian's packages"
    if os.geteuid() != 0:
        return "needs root, for namespaces and mounts"
    probe = ["unshare", "--mount", "--uts", "--net", "--pid", "--fork", "true"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    return f"needs namespaces: {done.stderr.strip()}" if done.returncode else None


def wait_until(
    what: Callable[[], object],
    seconds: float = 300,
    message: Callable[[], str] = str,
    hopeless: Callable[[], object] = bool,
) -> None:
    """Asks again and again until the answer is true.

    Args:
        what: The question.
        seconds: A limit that only a failure reaches, also on a machine that is busy.
        message: Makes the message of the failure.
        hopeless: Whether the answer cannot become true any more.

    Raises:
        AssertionError: It never was.
    """
    deadline = time.monotonic() + seconds
    while not what():
        over = hopeless()  # Asked first: what ended may have made the answer true.
        if over and what():
            return
        if over or time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s\n{message()}")
        time.sleep(0.2)


class Cluster(AbstractContextManager):
    """Slurm's services and nodes.

    Args:
        folder: Gets configuration, state and logs; made where it is missing.

    Attributes:
        disk: A small file system of the nodes; outside of the cluster, see `outside`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.disk = folder / "disk"
        self._init: subprocess.Popen[str] | None = None
        self._first = ""
        """The number of its first process."""
        self._inside: list[str] = []
        """Command that puts another one into the cluster's namespaces."""

    def __enter__(self) -> Cluster:
        self._write_configuration()
        spaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--mount-proc"]
        program = [sys.executable, cluster_init.__file__, str(self.folder), *NODES]
        with (self.folder / "log" / "services").open("w") as log:
            self._init = subprocess.Popen(
                ["unshare", *spaces, "--fork", "--kill-child", *program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C is for the tests, which then end it in order.
                env=self._environment(),
            )
        try:
            self._await_answer()
            children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children")
            self._first = children.read_text().strip()
            spaces = ["--mount", "--uts", "--ipc", "--net", "--pid"]
            self._inside = ["nsenter", f"--target={self._first}", *spaces]
            for node in NODES:
                self._order("start", node)
            wait_until(lambda: self.idle() == set(NODES), 60, self.logs)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._init is not None
        assert self._init.stdin is not None
        self._init.stdin.close()
        try:
            self._init.wait(60)  # Until the kernel has ended all of it.
        except subprocess.TimeoutExpired:
            self._init.kill()

    def run(
        self,
        *command: object,
        check: bool = True,
        cwd: Path = REPOSITORY,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command on the controller's host, as users do on a login node.

        Args:
            command: Its words.
            check: Whether it must succeed.
            cwd: Where it runs.
            environment: Further variables.
        """
        done = subprocess.run(
            [*self._inside, f"--wd={cwd}", *map(str, command)],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            env=self._environment() | dict(environment or {}),
        )
        assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    def outside(self, path: Path) -> Path:
        """A path of the nodes, as this process reaches it."""
        return Path(f"/proc/{self._first}/root{path}")

    def idle(self) -> set[str]:
        """Nodes without work that answer."""
        done = self.run("sinfo", "-h", "-N", "-t", "idle", "-o", "%N", check=False)
        return set(done.stdout.split())

    def cut(self, node: str) -> None:
        """Takes a node's power away; returns once it is off, which the controller does not know."""
        self._order("cut", node)

    def restore(self, node: str) -> None:
        """Starts a node again; returns when it is ready for jobs."""
        wait_until(lambda: node not in self.idle(), 60, self.logs)
        self._order("start", node)
        wait_until(lambda: node in self.idle(), 60, self.logs)

    def job(self, number: object) -> dict[str, str]:
        """What `scontrol show job` says: JobState, Restarts, NodeList, ExitCode, ..."""
        text = self.run("scontrol", "show", "job", "-o", number).stdout
        return dict(re.findall(r"(\w[\w:/]*)=(\S*)", text))

    def ended(self, number: object) -> bool:
        """Whether a job will not be started again."""
        return self.job(number)["JobState"] in ENDED

    def wait(
        self, number: object, states: Iterable[str] = ENDED, seconds: float = 400
    ) -> dict[str, str]:
        """Waits until a job is in one of the states; returns it."""
        wanted = set(states)
        wait_until(
            lambda: self.job(number)["JobState"] in wanted,
            seconds,
            lambda: f"job {number}: {self.job(number)}\n{self.logs()}",
        )
        return self.job(number)

    def logs(self) -> str:
        """The ends of the services' logs."""
        files = sorted((self.folder / "log").iterdir())
        return "\n".join(f"{file.name}:\n{file.read_text()[-2000:]}" for file in files)

    def _environment(self) -> dict[str, str]:
        # Nothing that this process inherited may make the jobs part of another one.
        own = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "PYTEST"))}
        configuration = str(self.folder / "etc" / "slurm.conf")
        return own | {"SLURM_CONF": configuration, "PATH": _search_path(), "OMP_NUM_THREADS": "1"}

    def _order(self, *words: str) -> None:
        assert self._init is not None
        assert self._init.stdin is not None
        print(*words, file=self._init.stdin, flush=True)
        self._await_answer()

    def _await_answer(self) -> None:
        assert self._init is not None
        assert self._init.stdout is not None
        answer = self._init.stdout.readline()
        assert answer == "done\n", f"the cluster's first process ended\n{self.logs()}"

    def _write_configuration(self) -> None:
        for name in ("disk", "etc", "log", "state", *(f"spool/{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        etc = self.folder / "etc"
        addresses = {node: cluster_init.address(index) for index, node in enumerate(NODES)}
        hosts = {"localhost": "127.0.0.1", "controller": cluster_init.CONTROLLER, **addresses}
        (etc / "hosts").write_text("".join(f"{value} {name}\n" for name, value in hosts.items()))
        (etc / "resolv.conf").write_text("")  # Unknown names fail at once.
        nodes = "\n".join(
            f"NodeName={node} NodeAddr={value} Port={NODE_PORT}"
            for node, value in addresses.items()
        )
        (etc / "slurm.conf").write_text(
            CONFIGURATION.format(
                folder=self.folder,
                controller=cluster_init.CONTROLLER,
                controller_port=CONTROLLER_PORT,
                gpus=GPUS,
                nodes=nodes,
            )
        )
        for index in range(GPUS):
            os.mknod(etc / f"gpu{index}", 0o20666, os.makedev(1, 3))  # The twin of /dev/null.
        (etc / "gres.conf").write_text(
            f"NodeName=n[1-{len(NODES)}] Name=gpu File={etc}/gpu[0-{GPUS - 1}]\n"
        )


def _search_path() -> str:
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    return os.pathsep.join([*folders, "/usr/sbin", "/sbin"])
