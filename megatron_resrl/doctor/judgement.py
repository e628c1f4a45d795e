"""All rules, applied to all facts of a job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from megatron_resrl.doctor.examination import Examination
from megatron_resrl.doctor.finding import Finding, at, merged
from megatron_resrl.doctor.needs import Needs
from megatron_resrl.doctor.rules.between_hosts import judge_between
from megatron_resrl.doctor.rules.compute import judge_products
from megatron_resrl.doctor.rules.environment import judge_environment, judge_same_environment
from megatron_resrl.doctor.rules.folder import judge_folders
from megatron_resrl.doctor.rules.gpus import judge_gpus, judge_likeness
from megatron_resrl.doctor.rules.host import judge_host, judge_numa
from megatron_resrl.doctor.rules.links import (
    judge_links,
    judge_sums,
    judge_unfinished,
)
from megatron_resrl.doctor.rules.sandbox import judge_sandbox
from megatron_resrl.doctor.rules.software import judge_agreement, judge_software, judge_vllm

AREAS = (
    *("ranks", "recipe", "software", "vllm", "gpus", "host", "environment", "sandbox"),
    *("folder", "hosts", "compute", "links"),
)
"""First parts of the names of rules, in the order of the report."""


def judge(examination: Examination, needs: Needs, of_recipe: Sequence[Finding]) -> list[Finding]:
    """What is wrong, and notes.

    Args:
        examination: All facts.
        needs: Of the recipe.
        of_recipe: Found when the needs were worked out.
    """
    found = [
        *_ranks(examination),
        *of_recipe,
        *_hosts(examination, needs),
        *_measured(examination),
    ]
    return sorted(merged(found), key=lambda each: each.severity == "note")


def _ranks(examination: Examination) -> Iterator[Finding]:
    absent = [rank for rank in range(examination.size) if rank not in examination.ranks]
    if absent:
        listed = ", ".join(map(str, absent[:8])) + (" ..." if len(absent) > 8 else "")
        hosts = ", ".join(dict.fromkeys(each.node for each in examination.ranks.values()))
        yield Finding(
            "ranks.absent",
            f"rank {listed}" if len(absent) == 1 else f"ranks {listed}",
            f"did not come within --wait; those that came are on {hosts}",
            "see whether its process started (the launcher's log), its host, and whether it "
            "reaches MASTER_ADDR; the rest was examined without it",
        )
    for place, what in examination.silent:
        yield Finding(
            "ranks.silent",
            place,
            f"it came, and did not say {what}",
            "see its host: a file system or device that does not answer, or a process that was "
            "killed",
        )


def _hosts(examination: Examination, needs: Needs) -> Iterator[Finding]:
    hosts, ranks = examination.hosts, list(examination.ranks.values())
    for name, facts in hosts.items():
        own = [rank for rank in ranks if rank.node == name]
        yield from at(f"host {name}", judge_software(facts.software, facts.gpus))
        if facts.vllm is not None:
            found = judge_vllm(
                facts.vllm, facts.software, facts.gpus, nccl_transfer=needs.nccl_transfer
            )
            yield from at(f"host {name}", found)
        yield from judge_gpus(name, facts.gpus, own, needs.device_memory)
        yield from judge_host(name, facts.host, own, needs, examination.size)
        if facts.sandbox is not None:
            yield from at(f"host {name}", judge_sandbox(facts.sandbox))
        yield from judge_numa(name, facts.host, facts.gpus, own)
        for rank in own:
            yield from judge_environment(
                rank, facts.host, hosts=len(hosts), tensor_parallel=needs.tensor_parallel
            )
    yield from judge_same_environment(ranks)
    yield from judge_folders({name: facts.folder for name, facts in hosts.items()}, needs)
    if len(hosts) > 1:
        software = {name: facts.software for name, facts in hosts.items()}
        gpus = {name: facts.gpus for name, facts in hosts.items()}
        yield from judge_agreement(software, gpus)
        yield from judge_likeness(gpus)
    between = {name: facts.between for name, facts in hosts.items() if facts.between is not None}
    yield from judge_between(between, needs.output_dir)


def _measured(examination: Examination) -> Iterator[Finding]:
    measured, places = examination.measured, examination.ranks
    yield from judge_unfinished(measured, places)
    yield from judge_products(measured, places)
    yield from judge_sums(measured)
    yield from judge_links(measured, places)
