"""The whole judgement, its report for people and for programs, and the command's options."""

from __future__ import annotations

import json

import pytest

from megatron_resrl.config.load import load_recipe
from megatron_resrl.doctor.examination import Examination, Host
from megatron_resrl.doctor.facts.folder import FolderFacts
from megatron_resrl.doctor.facts.host import HostFacts
from megatron_resrl.doctor.facts.measured import Measured
from megatron_resrl.doctor.facts.rank import RankFacts
from megatron_resrl.doctor.facts.software import SoftwareFacts, Torch
from megatron_resrl.doctor.finding import Finding, merged
from megatron_resrl.doctor.judgement import judge
from megatron_resrl.doctor.needs import Needs, needs_of, with_sizes
from megatron_resrl.doctor.options import DoctorOptions, take_options
from megatron_resrl.doctor.report import as_json, report
from megatron_resrl.errors import SettingError


def examination(**host_changes) -> Examination:
    """Two ranks on each of two hosts, all well."""
    limits = {"nofile": (65536, 65536), "core": (0, 0)}
    variables = {"OMP_NUM_THREADS": "1"}
    ranks = {
        rank: RankFacts(rank, rank % 2, "ab"[rank // 2], [0, 1, 2, 3], limits, variables)
        for rank in range(4)
    }
    facts = {
        "software": SoftwareFacts(
            python="3.11.7", versions={"torch": "2.13.0"}, torch=Torch("2.13.0+cpu")
        ),
        "host": HostFacts(cpus=4, memory_total=32 * 10**9, shared_memory=(16 * 10**9,) * 2),
        "folder": FolderFacts("/out", "nfs4", total=10**13, free=10**12, write=1e9, read=2e9),
    }
    hosts = {"a": Host(**facts), "b": Host(**(facts | host_changes))}
    rows = [{"bytes": 2**20, "seconds": 1e-3, "ranks": 4, "right": True}]
    measured = {
        rank: Measured(
            device="cpu",
            dtype="float32",
            flops=5e10,
            all_reduces=rows if rank == 0 else [],
            links=[
                {"ranks": [rank, other], "latency_s": 2e-5, "bandwidth": 1e9, "bytes": 1}
                for other in range(rank + 1, 4)
            ],
        )
        for rank in range(4)
    }
    return Examination(4, ranks, hosts, measured)


def test_judgement_of_a_job_that_is_well_has_no_findings():
    assert judge(examination(), Needs(), []) == []
    lines = list(report(examination(), []))
    assert lines[0] == "doctor: 4 ranks on 2 hosts"
    assert lines[-1] == "nothing is wrong"
    assert any(line.split()[:2] == ["ok", "links"] for line in lines)
    # 1 MiB in 1 ms; 2 (n - 1) / n of it on the bus.
    assert "1 MiB     1000 us     1.05 GB/s     1.57 GB/s" in "\n".join(lines)


def test_judgement_puts_what_is_wrong_before_notes():
    facts = examination(host=HostFacts(cpus=4, memory_total=10**9, swap_used=2 * 10**9))
    facts.ranks.pop(3)
    facts.measured.clear()
    facts.silent.append((str(facts.ranks[2].place), "the measurements"))
    found = judge(facts, Needs(output_dir="/out", checkpoint=2 * 10**12), [])
    assert [(each.rule, each.where, each.severity) for each in found] == [
        ("ranks.absent", "rank 3", "wrong"),
        ("ranks.silent", "rank 2 (host b, local rank 0)", "wrong"),
        ("host.shared_memory", "host b", "wrong"),
        ("folder.full", "hosts a, b", "wrong"),
        ("host.swap", "host b", "note"),
        ("folder.slow", "hosts a, b", "note"),
    ]
    lines = list(report(facts, found))
    assert any(line.split()[:2] == ["WRONG", "folder"] for line in lines)
    assert "wrong (4):" in lines
    assert "notes (2):" in lines
    assert not any("nothing is wrong" in line for line in lines)


def test_findings_of_many_places_are_one():
    found = merged(Finding("host.x", f"host n{number}", "p", "r") for number in range(9))
    assert [each.where for each in found] == ["hosts n0, n1, n2, n3 and 5 more"]
    ranks = [
        Finding("host.x", f"rank {rank} (host a, local rank {rank})", "p", "r") for rank in (0, 1)
    ]
    (both,) = merged(ranks)
    assert str(both) == "ranks 0 (host a, local rank 0), 1 (host a, local rank 1): p; r"


def test_json_has_the_documented_schema():
    facts = examination()
    said = json.loads(json.dumps(as_json(facts, judge(facts, Needs(), []))))
    assert set(said) == {
        *("schema", "version", "healthy", "world_size", "findings", "ranks", "hosts"),
        *("matrix_products", "all_reduces", "links"),
    }
    assert (said["schema"], said["healthy"], said["findings"]) == (1, True, [])
    (row,) = said["all_reduces"]
    assert row["bus_bandwidth"] == pytest.approx(1.5 * row["algorithm_bandwidth"])
    assert len(said["links"]) == 6
    assert said["hosts"]["b"]["folder"]["kind"] == "nfs4"
    assert set(said["hosts"]["b"]) == {
        *("software", "vllm", "gpus", "host", "sandbox", "folder", "between"),
    }
    assert "requirements" not in said["hosts"]["b"]["software"]


def test_needs_follow_the_recipe(tmp_path):
    config = {
        **{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 1000},
        **{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16},
        **{"num_key_value_heads": 2, "intermediate_size": 128, "tie_word_embeddings": False},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    recipe = load_recipe(
        None,
        [
            *("--model.path", str(tmp_path), "--output_dir", str(tmp_path / "out")),
            *("--rollout.engine=vllm", "--rollout.placement=disaggregated"),
            *("--vllm.python=/vllm/python", "--parallel.tensor_model_parallel_size=2"),
        ],
    )
    needs = needs_of(recipe, "/env/python", has_cuda=True)
    assert (needs.vllm_python, needs.nccl_transfer, needs.transfer_dir) == (
        "/vllm/python",
        True,
        "",
    )
    assert needs.tensor_parallel == 2
    on_cpu = needs_of(recipe, "/env/python", has_cuda=False)
    assert (on_cpu.nccl_transfer, on_cpu.transfer_dir) == (False, recipe.vllm.transfer_dir)
    sized, problems = with_sizes(needs, recipe, 4)
    assert problems == []
    assert sized.kept >= sized.checkpoint > sized.export > 0
    assert sized.host_memory > 0
    assert sized.device_memory > 0
    (tmp_path / "config.json").unlink()
    unknown, problems = with_sizes(needs, recipe, 4)
    assert (unknown, problems[0].setting) == (needs, "model.path")


def test_options_leave_settings_to_the_recipe():
    options, rest = take_options(["--quick", "--optimizer.lr=1", "--output_dir", "x", "--wait=5"])
    assert options == DoctorOptions(output_dir="x", wait=5.0, quick=True)
    assert rest == ["--optimizer.lr=1"]
    assert take_options(["--json", "--stage", "sft"])[0] == DoctorOptions(json=True, stage="sft")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--wait", "soon"], "--wait = 'soon': not a number of seconds"),
        (["--wait", "0"], "--wait = '0'"),
        (["--stage", "rl"], "--stage = 'rl': no stage; stages are train, sft, pretrain"),
        (["--output_dir"], "--output_dir = None: no value follows it"),
    ],
)
def test_options_that_are_impossible_are_refused(given, words):
    with pytest.raises(SettingError, match="^" + words.replace("?", r"\?")):
        take_options(given)
