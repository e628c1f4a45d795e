"""GPUs: what nvidia-smi prints, and what is judged from it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import nvidia_smi
import pytest

from megatron_resrl.doctor.facts.gpus import (
    GpuFacts,
    gather_gpus,
    parse_query,
    parse_topology,
    visible,
)
from megatron_resrl.doctor.facts.rank import RankFacts
from megatron_resrl.doctor.rules.gpus import judge_gpus, judge_likeness


def rules(facts: GpuFacts, ranks: int = 1, device_memory: int = 0) -> list[str]:
    own = [RankFacts(rank, rank, "a") for rank in range(ranks)]
    return [each.rule for each in judge_gpus("a", facts, own, device_memory)]


@pytest.mark.parametrize("old", [False, True])
def test_gpus_of_a_healthy_host_have_no_findings(old):
    facts = parse_query(nvidia_smi.query([{}] * 8, old=old))
    assert (facts.driver, facts.cuda, len(facts.gpus)) == ("550.54.15", "12.4", 8)
    gpu = facts.gpus[1]
    assert (gpu.name, gpu.bus, gpu.memory) == (
        "NVIDIA H100 80GB HBM3",
        "0000:1c:00.0",
        81559 * 2**20,
    )
    assert (gpu.power_limit, gpu.default_power_limit, gpu.pcie_width) == (700.0, 700.0, (16, 16))
    assert gpu.fabric == ("Completed", "Success")
    assert rules(facts, ranks=8) == []


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"errors": 2}, "gpus.memory_errors"),
        ({"pending": "Yes"}, "gpus.memory_pending"),
        ({"failed": "Yes", "errors": 1}, "gpus.memory_broken"),
        ({"reset": "Yes"}, "gpus.reset"),
        ({"fabric": "In Progress", "fabric_status": "N/A"}, "gpus.fabric"),
        ({"mig": "Enabled"}, "gpus.mig"),
        ({"mode": "Prohibited"}, "gpus.compute_mode"),
        ({"mode": "Exclusive_Process"}, "gpus.compute_mode"),
        ({"slow": "Active", "heat": 91}, "gpus.slowed"),
        ({"watts": 500}, "gpus.power"),
        ({"lanes": 8}, "gpus.pcie"),
        ({"persistence": "Disabled"}, "gpus.persistence"),
        ({"free": 20000}, "gpus.in_use"),
    ],
)
def test_gpus_have_one_finding_for_one_fault(changes, rule):
    facts = parse_query(nvidia_smi.query([{}, changes]))
    (found,) = judge_gpus("a", facts, [], 0)
    assert (found.rule, found.where) == (rule, "GPU 1 of host a")
    assert found.remedy


@pytest.mark.parametrize(
    ("changes", "rule"), [({"errors": 2}, "memory_errors"), ({"slow": "Active"}, "slowed")]
)
def test_gpus_of_an_older_driver_are_judged_alike(changes, rule):
    assert rules(parse_query(nvidia_smi.query([changes], old=True))) == [f"gpus.{rule}"]


def test_gpus_in_use_are_named_with_the_process():
    process = nvidia_smi.PROCESS.format(pid=4711, used=30000)
    facts = parse_query(nvidia_smi.query([{"processes": process, "free": 51000}]))
    (found,) = judge_gpus("a", facts, [], 0)
    assert "python3 4711 (31.5 GB)" in found.problem


def test_gpus_too_small_or_too_few_are_said():
    facts = parse_query(nvidia_smi.query([{}] * 2))
    assert rules(facts, ranks=2, device_memory=90 * 10**9) == ["gpus.too_small"] * 2
    assert rules(facts, ranks=3) == ["gpus.too_few"]


def test_gpus_visible_follow_the_variable():
    facts = parse_query(nvidia_smi.query([{}, {"errors": 1}, {}]))
    first = facts.gpus[2].uuid[:12]
    kept = visible(facts, f"0, {first},7")
    assert [gpu.index for gpu in kept.gpus] == [0, 2]
    assert rules(kept) == ["gpus.visible"]
    assert visible(facts, None) == facts


def test_gpus_without_nvlink_among_others_are_named():
    row = ["NV18", "NV18", "NV18", "NV18"]
    links = [[" X " if i == j else link for j, link in enumerate(row)] for i in range(4)]
    assert set(parse_topology(nvidia_smi.topology(links)).values()) == {"NV18"}
    links[1][3] = links[3][1] = "SYS"
    found = parse_topology(nvidia_smi.topology(links))
    assert len(found) == 6
    (finding,) = judge_gpus("a", GpuFacts(links=found), [], 0)
    assert (finding.rule, "1-3 (SYS)" in finding.problem) == ("gpus.nvlink", True)


def test_gpus_that_differ_between_hosts_are_listed():
    h100 = parse_query(nvidia_smi.query([{}] * 2))
    a100 = parse_query(nvidia_smi.query([{"name": "NVIDIA A100-SXM4-80GB"}] * 2))
    assert list(judge_likeness({"a": h100, "b": h100})) == []
    (found,) = judge_likeness({"a": h100, "b": a100})
    assert "2 x NVIDIA A100-SXM4-80GB on b" in found.problem
    capped = parse_query(nvidia_smi.query([{}, {"watts": 400}]))
    (found,) = judge_likeness({"a": h100, "b": capped})
    assert (found.rule, "400 W, 700 W" in found.problem) == ("gpus.power_differs", True)


@pytest.mark.parametrize("ends", ["answers", "fails", "nonsense"])
def test_gpus_are_asked_of_the_program_in_the_path(ends, tmp_path: Path, monkeypatch):
    (tmp_path / "query.xml").write_text(nvidia_smi.query([{}, {}]))
    (tmp_path / "topology").write_text(nvidia_smi.topology([[" X ", "NV18"], ["NV18", " X "]]))
    says = {
        "answers": f'cd {tmp_path}; [ "$1" = topo ] && exec cat topology; exec cat query.xml',
        "fails": "echo Unable to determine the device handle for GPU 0000:1B:00.0; exit 15",
        "nonsense": "echo no XML",
    }
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{says[ends]}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    facts = gather_gpus({"CUDA_VISIBLE_DEVICES": "0,1"})
    if ends == "answers":
        assert (len(facts.gpus), facts.links) == (2, {"0-1": "NV18"})
    else:
        (found,) = judge_gpus("a", facts, [], 0)
        words = {"fails": "Unable to determine the device handle", "nonsense": "no XML"}[ends]
        assert (found.rule, words in found.problem) == ("gpus.driver", True)


def test_gpus_of_a_host_without_driver_are_none(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gather_gpus({}, tmp_path) == GpuFacts()
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    assert rules(gather_gpus({}, tmp_path)) == ["gpus.driver"]
