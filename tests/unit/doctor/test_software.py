"""Versions: what is asked of an interpreter, and which do not fit together."""

from __future__ import annotations

import dataclasses
import stat
import sys
from pathlib import Path

import pytest

from megatron_resrl.doctor.facts.gpus import Gpu, GpuFacts
from megatron_resrl.doctor.facts.software import (
    SoftwareFacts,
    Torch,
    facts_of,
    gather_software,
    gather_vllm,
)
from megatron_resrl.doctor.rules.software import judge_agreement, judge_software, judge_vllm

HOST = GpuFacts("550.54.15", "12.4", [Gpu(0, "NVIDIA H100 80GB HBM3")])
TORCH = Torch(
    version="2.8.0+cu124",
    cuda="12.4",
    nccl="2.21.5",
    architectures=["sm_80", "sm_90"],
    devices=1,
    capabilities=[[9, 0]],
)
GOOD = SoftwareFacts(
    python="3.12.3",
    executable="/env/bin/python",
    versions={
        **{"torch": "2.8.0", "megatron-core": "0.16.1", "transformer-engine": "2.11.0"},
        **{"transformers": "5.23.0", "nvidia-nccl-cu12": "2.21.5"},
    },
    requirements={
        "megatron-resrl": [
            "torch>=2.8",
            "megatron-core<0.20,>=0.16.1",
            'transformer-engine[pytorch]<2.12,>=2.9; extra == "te"',
            'trl>=1.16; extra == "bench"',
        ]
    },
    torch=TORCH,
)


def changed(torch=None, versions=None, **fields) -> SoftwareFacts:
    facts = dataclasses.replace(GOOD, versions=GOOD.versions | (versions or {}), **fields)
    return dataclasses.replace(facts, torch=dataclasses.replace(TORCH, **(torch or {})))


def rules(facts: SoftwareFacts, gpus: GpuFacts = HOST) -> list[str]:
    return [each.rule for each in judge_software(facts, gpus)]


def test_software_that_fits_together_has_no_findings():
    assert rules(GOOD) == []


@pytest.mark.parametrize(
    ("facts", "rule"),
    [
        (changed(versions={"torch": "2.6.0"}), "software.requirement"),
        (changed(versions={"megatron-core": None}), "software.requirement"),
        (changed(versions={"transformer-engine": "2.13.0"}), "software.requirement"),
        (changed(versions={"transformer-engine": None}), "software.transformer_engine"),
        (changed(torch={"cuda": "13.0"}), "software.driver"),
        (changed(torch={"cuda": "12.8"}), "software.driver"),
        (changed(torch={"cuda": None}), "software.cpu_build"),
        (changed(torch={"cuda_error": "RuntimeError: 802"}), "software.cuda"),
        (changed(torch={"devices": 0, "capabilities": []}), "software.no_device"),
        (changed(torch={"capabilities": [[12, 0]]}), "software.architecture"),
        (changed(torch={"nccl": "2.19.3"}), "software.nccl"),
        (changed(failure="no answer within 180 s"), "software.no_answer"),
        (
            changed(core_lacks="megatron-core 0.19 imports triton (x): run pip install triton"),
            "software.triton",
        ),
        (
            changed(import_errors={"transformer_engine.pytorch": "ImportError: undefined symbol"}),
            "software.import",
        ),
    ],
)
def test_software_has_one_finding_for_one_fault(facts, rule):
    assert rules(facts) == [rule]


def test_software_for_a_newer_cuda_of_the_same_version_is_a_note():
    (newer,) = judge_software(changed(torch={"cuda": "12.8"}), HOST)
    (next_one,) = judge_software(changed(torch={"cuda": "13.0"}), HOST)
    assert (newer.severity, next_one.severity) == ("note", "wrong")
    assert rules(changed(torch={"cuda": "12.1"})) == []


def test_software_with_ptx_runs_on_newer_gpus():
    torch = {"architectures": ["sm_90", "compute_90"], "capabilities": [[10, 0]]}
    assert rules(changed(torch=torch)) == []


def test_software_names_the_torch_beside_which_an_import_fails():
    facts = changed(import_errors={"amp_C": "ImportError: libc10.so"})
    (found,) = judge_software(facts, HOST)
    assert "beside torch 2.8.0+cu124 (ImportError: libc10.so)" in found.problem


def vllm(**fields) -> SoftwareFacts:
    facts = SoftwareFacts(
        python="3.12.3",
        executable="/vllm/bin/python",
        versions={"vllm": "0.33.0", "torch": "2.14.0", "transformers": "5.19.0", "numba": "0.1"},
        requirements={"vllm": ["torch==2.14.0", "transformers<5.20", "numba==0.65.0"]},
        torch=TORCH,
    )
    return dataclasses.replace(facts, **fields)


@pytest.mark.parametrize(
    ("facts", "rule"),
    [
        (vllm(), None),
        (vllm(failure="ended with status 1"), "vllm.no_answer"),
        (vllm(versions={"vllm": None}), "vllm.missing"),
        (vllm(versions=vllm().versions | {"torch": "2.13.0"}), "vllm.requirement"),
        (vllm(torch=dataclasses.replace(TORCH, cuda="13.0")), "vllm.driver"),
        (vllm(torch=dataclasses.replace(TORCH, nccl="2.27.5")), "vllm.nccl"),
        (vllm(import_errors={"vllm._C": "ImportError: undefined symbol"}), "vllm.import"),
    ],
)
def test_vllm_has_one_finding_for_one_fault(facts, rule):
    found = [each.rule for each in judge_vllm(facts, GOOD, HOST, nccl_transfer=True)]
    assert found == ([rule] if rule else [])


def test_vllm_may_have_another_nccl_where_none_sends_weights():
    facts = vllm(torch=dataclasses.replace(TORCH, nccl="2.27.5"))
    assert not list(judge_vllm(facts, GOOD, HOST, nccl_transfer=False))


def test_agreement_of_versions_between_hosts():
    gpus = {"a": HOST, "b": HOST, "c": HOST}
    assert not list(judge_agreement({"a": GOOD, "b": GOOD, "c": GOOD}, gpus))
    other = changed(torch={"nccl": "2.27.5"}, versions={"torch": "2.9.0"})
    found = list(judge_agreement({"a": GOOD, "b": other, "c": GOOD}, gpus))
    assert [each.problem for each in found] == [
        "torch differs between hosts: 2.8.0 on a, c; 2.9.0 on b",
        "NCCL differs between hosts: 2.21.5 on a, c; 2.27.5 on b",
    ]


def test_software_of_this_environment_is_found():
    facts = gather_software()
    assert facts.failure is None
    assert facts.executable == sys.executable
    assert facts.torch is not None
    assert facts.versions["torch"] == facts.torch.version
    assert facts.versions["numpy"]
    assert facts.import_errors == {}


@pytest.mark.parametrize(
    ("script", "failure"),
    [
        ("exit 3", "ended with status 3"),
        ("echo /usr/lib is missing >&2; exit 1", "it said: /usr/lib is missing"),
        ("kill -SEGV $$", "ended by SIGSEGV"),
    ],
)
def test_vllm_of_an_interpreter_that_fails_says_why(script, failure, tmp_path: Path):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    assert failure in (gather_vllm(str(python)).failure or "")
    assert "cannot be run" in (gather_vllm(str(tmp_path / "none")).failure or "")


def test_software_that_crashes_in_an_import_names_the_module():
    said = [
        {"python": "3.12.3", "executable": "/env/bin/python"},
        {"versions": {}, "requirements": {}},
        {"importing": "torch"},
        {"imported": "torch", "error": None},
        {"importing": "amp_C"},
    ]
    facts = facts_of(said, "ended by SIGSEGV")
    assert facts.import_errors == {"amp_C": "the process ended by SIGSEGV"}
    assert facts.failure is None
