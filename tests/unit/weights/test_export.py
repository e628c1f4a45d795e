"""A planned export: what it announces, and that it finds nothing out anew."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from megatron_resrl.config.schema import ModelConfig, ParallelConfig, PrecisionConfig
from megatron_resrl.policy.policy import Policy
from megatron_resrl.weights.bridge import GroupedNames, bridge_of
from megatron_resrl.weights.export import ExportPlan


@pytest.fixture
def policy(qwen3_on_one_rank):
    model = ModelConfig(str(qwen3_on_one_rank))
    return Policy.build(model, ParallelConfig(), PrecisionConfig("bf16"))


def test_export_plan_announces_what_an_export_yields(policy):
    plan = ExportPlan(policy.modules, policy.hf_config)
    came = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in plan.export()]
    assert [(facts.name, facts.dtype, facts.shape) for facts in plan.tensors] == came
    assert plan.num_bytes == sum(tensor.nbytes for _, tensor in plan.export())
    assert {facts.dtype_name for facts in plan.tensors} == {"bfloat16"}


def test_export_plan_yields_present_values_without_asking(policy, monkeypatch):
    plan = ExportPlan(policy.modules, policy.hf_config)

    def no_questions(*_, **__):
        raise AssertionError("an export asks other ranks")

    monkeypatch.setattr(dist, "all_gather_object", no_questions)
    monkeypatch.setattr(dist, "broadcast_object_list", no_questions)
    before = {name: tensor.clone() for name, tensor in plan.export()}
    with torch.no_grad():
        for parameter in policy.modules[0].parameters():
            parameter.neg_()
    after = dict(plan.export())
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], -before[name]) for name in before)


def test_export_plan_yields_what_mbridge_exports(policy):
    theirs = bridge_of(policy.hf_config, policy.modules[0])
    with torch.no_grad():
        expected = list(theirs.export_weights([GroupedNames(each) for each in policy.modules]))
    ours = list(ExportPlan(policy.modules, policy.hf_config).export())
    assert [name for name, _ in ours] == [name for name, _ in expected]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(ours, expected, strict=True))
