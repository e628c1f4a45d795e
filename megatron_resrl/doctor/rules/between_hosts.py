"""Rules on what hosts see of each other: the folder, its locks, ports, clocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from megatron_resrl.doctor.facts.between_hosts import BetweenFacts
from megatron_resrl.doctor.finding import Finding
from megatron_resrl.platform.skews import SKEW_S, clock_skews

SLOW_LISTING_S = 10.0


def judge_between(by_host: Mapping[str, BetweenFacts], output_dir: str) -> Iterator[Finding]:
    """All hosts of a job.

    Args:
        by_host: What each has found; the first host comes first.
        output_dir: Folder that a run would write to.
    """
    yield from _folder(by_host, output_dir)
    for host, facts in by_host.items():
        yield from _network(host, facts)
    if not by_host:
        return
    clocks = {host: facts.clock_ahead_s for host, facts in by_host.items()}
    for host, skew in clock_skews(clocks).items():
        if abs(skew) > SKEW_S + by_host[host].clock_error_s:
            yield Finding(
                "hosts.clock",
                f"host {host}",
                f"its clock differs by {skew:+.1f} s from that of the other hosts: logs and ages "
                "of files cannot be compared",
                "let all hosts follow the same time server (chrony, ntpd)",
            )


def _folder(by_host: Mapping[str, BetweenFacts], output_dir: str) -> Iterator[Finding]:
    first = next(iter(by_host), "")
    for host, facts in by_host.items():
        where = f"host {host}"
        if facts.failure is not None:
            yield Finding(
                "hosts.folder",
                where,
                f"the output folder {output_dir} could not be compared with that of the other "
                f"hosts ({facts.failure})",
                "see the rules `folder` of these hosts",
            )
        elif facts.visible_after_s is None:
            yield Finding(
                "hosts.folder_not_shared",
                where,
                f"it does not see what host {first} writes to {output_dir}, and every host writes "
                "a part of a checkpoint",
                "give an output_dir on a file system that all hosts share",
            )
        elif facts.visible_after_s > SLOW_LISTING_S:
            yield Finding(
                "hosts.folder_late",
                where,
                f"it sees a new file of host {first} after {facts.visible_after_s:.0f} s",
                "mount the file system with a shorter cache of attributes (NFS: actimeo)",
                "note",
            )
        for kind, said in facts.locks.items():
            if said == "does not hold":
                yield Finding(
                    "hosts.lock",
                    where,
                    f"a lock by {kind} of host {first} does not hold there: caches of libraries "
                    "rely on it; run.lock does not",
                    "mount the file system with locks between hosts (Lustre: -o flock, not "
                    "localflock; NFS: without nolock)",
                    "note",
                )
    created = [host for host, facts in by_host.items() if facts.created]
    if len(created) > 1 and not any(facts.visible_after_s is None for facts in by_host.values()):
        yield Finding(
            "hosts.exclusive",
            "",
            f"hosts {', '.join(created)} created the same file: two runs may write into one folder",
            "give an output_dir on a POSIX file system (no object store behind FUSE)",
        )


def _network(host: str, facts: BetweenFacts) -> Iterator[Finding]:
    for other, why in facts.unresolved.items():
        yield Finding(
            "hosts.name",
            f"host {host}",
            f"the name of host {other} has no address there ({why})",
            "add all hosts to DNS or /etc/hosts of every host",
        )
    for other, why in facts.unreachable.items():
        yield Finding(
            "hosts.unreachable",
            f"host {host}",
            f"no connection to host {other} ({why})",
            "open all ports between the hosts of a job in their firewalls; if the name leads to "
            "the wrong network, correct it or set NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME",
        )
