"""Fields handed to megatron-core's own config classes."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from megatron_resrl.checks.facts import Facts
from megatron_resrl.checks.passthrough import OWN_SETTINGS, _megatron_class, check_passthrough
from megatron_resrl.config.load import load_recipe
from megatron_resrl.config.recipe_schema import schema_of
from megatron_resrl.config.schema import Recipe


def problems(*overrides: str) -> list[str]:
    return [str(p) for p in check_passthrough(Facts(load_recipe(None, overrides), 1, {}))]


def test_passthrough_accepts_fields_of_megatron_core() -> None:
    assert not problems(
        "--model.megatron={init_method_std: 0.02, recompute_modules: [mlp]}",
        "--model.megatron.num_layers_in_first_pipeline_stage=null",
        "--model.megatron.embedding_init_method_std=1",
        "--optimizer.megatron.log_num_zeros_in_grad=true",
        "--parallel.ddp={overlap_grad_reduce: true, bucket_size: 1000}",
    )


@pytest.mark.parametrize(
    "override",
    [
        "--model.megatron.cuda_graph_impl=local",
        "--model.megatron.enable_cuda_graph=true",
        "--model.megatron.external_cuda_graph=true",
        "--model.megatron.fine_grained_activation_offloading=true",
        "--optimizer.megatron.optimizer=sgd",
    ],
)
def test_passthrough_refuses_fields_that_cannot_be_served(override: str) -> None:
    (problem,) = problems(override)
    assert problem.startswith(f"{override.removeprefix('--').partition('=')[0]} = ")
    assert problem.endswith("leave it out")


def test_passthrough_allows_fields_that_are_off() -> None:
    assert not problems("--model.megatron={cuda_graph_impl: none, enable_cuda_graph: false}")


@pytest.mark.parametrize(
    ("override", "meant", "cls"),
    [
        ("--model.megatron.init_method_sdt=1", "init_method_std", "TransformerConfig"),
        ("--optimizer.megatron.loss_scal=1", "loss_scale", "OptimizerConfig"),
        ("--parallel.ddp.bucketsize=1", "bucket_size", "DistributedDataParallelConfig"),
    ],
)
def test_passthrough_names_class_and_match_of_unknown_fields(
    override: str, meant: str, cls: str
) -> None:
    (message,) = problems(override)
    assert message.startswith(override.removeprefix("--").replace("=", " = "))
    assert f"{cls} has no such field; did you mean {meant}?" in message


@pytest.mark.parametrize(
    ("override", "ours"),
    [
        ("--model.megatron.tensor_model_parallel_size=2", "parallel.tensor_model_parallel_size"),
        ("--model.megatron.hidden_dropout=0.1", "model.hidden_dropout"),
        ("--model.megatron.fp8=hybrid", "precision.fp8"),
        (
            "--model.megatron.first_last_layers_bf16=true",
            "precision.num_layers_at_start_in_bf16",
        ),
        ("--model.megatron.bf16=true", "precision.params_dtype"),
        ("--optimizer.megatron.lr=1", "optimizer.lr"),
        (
            "--optimizer.megatron.use_distributed_optimizer=false",
            "parallel.use_distributed_optimizer",
        ),
        ("--parallel.ddp.use_distributed_optimizer=true", "parallel.use_distributed_optimizer"),
    ],
)
def test_passthrough_names_the_setting_of_a_field(override: str, ours: str) -> None:
    (message,) = problems(override)
    assert message.endswith(f"use {ours}")


@pytest.mark.parametrize(
    "field",
    [
        "model.megatron.fp8_param",
        "model.megatron.fp4_param",
        "optimizer.megatron.reuse_grad_buf_for_mxfp8_param_ag",
        "parallel.ddp.fp8_param_gather",
    ],
)
def test_passthrough_refuses_weights_narrower_than_loaded(field: str) -> None:
    (message,) = problems(f"--{field}=true")
    assert message.startswith(f"{field} = True")
    assert "not from model.path" in message
    assert not problems(f"--{field}=false")


def test_passthrough_knows_settings_that_exist_on_both_sides() -> None:
    for mapping, names in OWN_SETTINGS.items():
        fields = {field.name for field in dataclasses.fields(_megatron_class(mapping))}
        for name, ours in names.items():
            assert name in fields
            assert ours in schema_of(Recipe).settings


def test_passthrough_refuses_what_model_or_trainer_decide() -> None:
    (message,) = problems("--model.megatron.hidden_size=64")
    assert "config.json" in message
    (message,) = problems("--model.megatron.calculate_per_token_loss=false")
    assert message.endswith("leave it out")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("--model.megatron.init_method_std=wide", "expects float or int"),
        ("--model.megatron.init_method_std=true", "expects a number"),
        ("--model.megatron.attention_softmax_in_fp32=1", "expects bool"),
        ("--parallel.ddp.bucket_size=large", "expects int or NoneType"),
    ],
)
def test_passthrough_refuses_values_of_the_wrong_type(override: str, said: str) -> None:
    (message,) = problems(override)
    assert said in message


def test_passthrough_without_fields_imports_no_megatron_core() -> None:
    code = (
        "import sys; from megatron_resrl.checks.facts import Facts; "
        "from megatron_resrl.config.load import load_recipe; "
        "from megatron_resrl.checks.passthrough import check_passthrough; "
        "assert not list(check_passthrough(Facts(load_recipe(None), 1, {}))); "
        "assert 'torch' not in sys.modules; assert 'megatron' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
