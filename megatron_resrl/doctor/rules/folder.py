"""Rules on the file system of the output folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from megatron_resrl.doctor.facts.folder import FolderFacts
from megatron_resrl.doctor.finding import Finding, at
from megatron_resrl.doctor.needs import Needs
from megatron_resrl.platform.disk import format_bytes

SLOW_SAVE_S = 300.0
"""Seconds of writing a checkpoint from which on it is said."""
SLOW_WRITE = 50e6
"""Bytes/s, where no recipe says how large a checkpoint is."""
SLOW_SYNC_S = 0.2
FEW_FILES = 10_000
CLOCK_S = 2.0
"""Seconds by which a file server's clock may differ."""
_IN_MEMORY = ("tmpfs", "ramfs")
_OF_A_CONTAINER = ("overlay", "aufs")


def judge_folder(facts: FolderFacts, needs: Needs) -> Iterator[Finding]:
    """The file system, as one host sees it.

    Args:
        facts: Of the folder.
        needs: Of the recipe.
    """
    if facts.failure is not None:
        yield Finding(
            "folder.unusable",
            "",
            f"{facts.path} cannot be used ({facts.failure})",
            "give another output_dir, or have its file system or the rights mended",
        )
    yield from _room(facts, needs)
    yield from _meaning(facts)
    yield from _speed(facts, needs)


def judge_folders(by_host: Mapping[str, FolderFacts], needs: Needs) -> Iterator[Finding]:
    """The file system as every host sees it.

    Args:
        by_host: Of the folder, by host.
        needs: Of the recipe.
    """
    for host, facts in by_host.items():
        yield from at(f"host {host}", judge_folder(facts, needs))
    rates = {host: facts.write for host, facts in by_host.items() if facts.write}
    if len(rates) < 2:
        return
    fastest, slowest = max(rates, key=lambda host: rates[host]), min(rates, key=lambda h: rates[h])
    if rates[slowest] < rates[fastest] / 4:
        yield Finding(
            "folder.uneven",
            f"host {slowest}",
            f"it writes {format_bytes(rates[slowest])}/s to the output folder, and host {fastest} "
            f"{format_bytes(rates[fastest])}/s: every save waits for it",
            "see its network and its mount options",
            "note",
        )


def _room(facts: FolderFacts, needs: Needs) -> Iterator[Finding]:
    if facts.total == 0:
        return  # Some file systems do not say how large they are.
    free, place = format_bytes(facts.free), f"{facts.path} ({facts.kind})"
    if facts.free < needs.checkpoint:
        yield Finding(
            "folder.full",
            "",
            f"{free} are free on {place}, and a checkpoint needs {format_bytes(needs.checkpoint)}",
            "make room or give another output_dir",
        )
    elif facts.free < needs.kept:
        yield Finding(
            "folder.full",
            "",
            f"{free} are free on {place}; what the run keeps needs {format_bytes(needs.kept)}",
            "make room, or keep fewer checkpoints (checkpoint.keep_last)",
            "note",
        )
    elif facts.free < 2**30:
        yield Finding(
            "folder.full", "", f"{free} are free on {place}", "make room or give another output_dir"
        )
    if facts.free_files is not None and facts.free_files < FEW_FILES:
        yield Finding(
            "folder.files",
            "",
            f"{place} has room for {facts.free_files} more files (inodes)",
            "delete small files, or give another output_dir",
        )
    if facts.kind in _IN_MEMORY:
        yield Finding(
            "folder.in_memory",
            "",
            f"{place} is in memory: what a run writes is lost with the host",
            "give an output_dir on a disk",
        )
    elif facts.kind in _OF_A_CONTAINER:
        yield Finding(
            "folder.in_container",
            "",
            f"{place} belongs to the container: what a run writes is lost with it",
            "mount a folder into the container and give that",
            "note",
        )


def _meaning(facts: FolderFacts) -> Iterator[Finding]:
    """What the lock of a run folder and the switch of `latest` rely on."""
    if facts.torn_renames:
        yield Finding(
            "folder.rename",
            "",
            f"a reader saw a file missing or half-written {facts.torn_renames} times while it was "
            "replaced: a run may find no newest checkpoint, or half of one",
            "give an output_dir on a POSIX file system (no object store behind FUSE)",
        )
    if facts.exclusive is False:
        yield Finding(
            "folder.exclusive",
            "",
            "two processes can create the same file: two runs may write into one folder",
            "give an output_dir on a POSIX file system (no object store behind FUSE)",
        )
    for kind, said in facts.locks.items():
        if said != "holds":
            reason = said if said == "does not hold" else f"cannot be asked for ({said})"
            yield Finding(
                "folder.lock",
                "",
                f"a lock by {kind} {reason}: caches of libraries rely on it; run.lock does not",
                "mount the file system with locks (Lustre: -o flock; NFS: without nolock)",
                "note",
            )
    if facts.clock_ahead_s is not None and abs(facts.clock_ahead_s) > CLOCK_S:
        yield Finding(
            "folder.clock",
            "",
            f"the file server's clock differs from the host's by {facts.clock_ahead_s:+.1f} s: "
            "ages of files are wrong",
            "have both follow the same time server (chrony, ntpd)",
            "note",
        )


def _speed(facts: FolderFacts, needs: Needs) -> Iterator[Finding]:
    if facts.write:
        seconds = needs.checkpoint / facts.write
        rate = f"{format_bytes(facts.write)}/s are written"
        if seconds > SLOW_SAVE_S:
            yield Finding(
                "folder.slow",
                "",
                f"{rate} by one process: a checkpoint of {format_bytes(needs.checkpoint)} takes up "
                f"to {seconds:.0f} s, less where several hosts write at a time",
                "give a faster output_dir, or keep checkpoint.async_save on and save more rarely "
                "(checkpoint.save_every)",
                "note",
            )
        elif facts.write < SLOW_WRITE:
            yield Finding(
                "folder.slow",
                "",
                f"{rate} to {facts.path}",
                "give an output_dir on a parallel file system or a local disk",
                "note",
            )
    if facts.sync_s is not None and facts.sync_s > SLOW_SYNC_S:
        yield Finding(
            "folder.sync",
            "",
            f"writing 4 KB through to the disk takes {facts.sync_s:.2f} s",
            "see the load of the file server",
            "note",
        )
