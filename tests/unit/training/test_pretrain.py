"""Whole runs of pretraining on one rank: data, evaluation, resume, and every setting."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from faults import RATES
from safetensors.torch import load_file
from tiny_corpus import LENGTH, documents, write_pretraining, write_tokens
from tiny_recipe import write_model
from tiny_task import read_metrics
from transformers import AutoModelForCausalLM

from megatron_resrl.config.load import load_recipe
from megatron_resrl.config.schema_pretrain import PretrainRecipe
from megatron_resrl.errors import InputError
from megatron_resrl.training.interruption import Interrupted
from megatron_resrl.training.pretrain import pretrain

Lines = list[dict[str, Any]]


def _run(directory: Path, *overrides: str, **settings: Any) -> Lines:
    """Metrics of a run of a tiny recipe, the evaluation before the first step first."""
    directory.mkdir(exist_ok=True)
    recipe = load_recipe(str(write_pretraining(directory, **settings)), overrides, PretrainRecipe)
    pretrain(recipe)
    return [
        {name: value for name, value in line.items() if name not in RATES}
        for line in read_metrics(Path(recipe.output_dir))
    ]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Lines]:
    """A run of two epochs without interruption, and its metrics."""
    directory = tmp_path_factory.mktemp("straight")
    tokens = write_tokens(directory, "few", count=5)
    lines = _run(directory, data__train_files=[str(tokens)], steps=5)
    return directory, lines


def _at_step(number: int, action: Callable[[], None]) -> None:
    """Does something once when the step begins."""
    armed = [True]

    def hook(event: str, arguments: tuple) -> None:
        if event == "megatron_resrl.step" and arguments[0] == number and armed:
            armed.clear()
            action()

    sys.addaudithook(hook)


@pytest.mark.setting("pretrain:batch.global_batch_size", "pretrain:data.sequence_length")
def test_pretrain_counts_what_it_consumes(straight):
    _, (start, *steps) = straight
    assert start == {"step": 0}
    assert [line["batch_size"] for line in steps] == [4.0] * 5
    assert [line["consumed_tokens"] for line in steps] == [4 * LENGTH * n for n in range(1, 6)]
    assert [line["targets"] for line in steps] == [4 * LENGTH] * 5
    assert steps[-1]["data/epoch"] > 1.5
    assert abs(steps[0]["loss"] - math.log(64)) < 0.1
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.5


def _killed(directory: Path, straight: tuple[Path, Lines], stop: Callable[[], None]) -> None:
    settings = {"data__train_files": [str(straight[0] / "few")], "steps": 5}
    _at_step(4, stop)
    with pytest.raises((Interrupted, RuntimeError)):
        _run(directory, **settings)
    assert not (directory / "run" / "hf").exists()
    assert _run(directory, **settings) == straight[1]
    weights, expected = (
        load_file(run / "run" / "hf" / "model.safetensors") for run in (directory, straight[0])
    )
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


def test_pretrain_interrupted_resumes_to_the_same_bits(straight, tmp_path):
    _killed(tmp_path, straight, lambda: os.kill(os.getpid(), signal.SIGUSR1))


def test_pretrain_killed_resumes_to_the_same_bits(straight, tmp_path):
    def kill() -> None:
        raise RuntimeError("killed in step 4")

    # The checkpoint of step 2 is the last one.
    _killed(tmp_path, straight, kill)


def test_pretrain_of_more_steps_goes_on_in_the_same_order(straight, tmp_path):
    settings = {"data__train_files": [str(straight[0] / "few")]}
    shorter = _run(tmp_path, **settings, steps=3)
    assert shorter == straight[1][:4]
    assert _run(tmp_path, **settings, steps=5) == straight[1]


def test_pretrain_refuses_to_resume_on_other_tokens(straight, tmp_path):
    _run(tmp_path, steps=1)
    with pytest.raises(InputError, match="data: token files: "):
        _run(tmp_path, data__train_files=[str(straight[0] / "few")], steps=2)
    lines = _run(
        tmp_path,
        "--checkpoint.resume=changed",
        data__train_files=[str(straight[0] / "few")],
        steps=2,
    )
    # The new data begin with their first sequence; what was consumed counts on.
    assert lines[-1]["consumed_tokens"] == 2 * 4 * LENGTH
    assert lines[-1]["data/epoch"] == straight[1][1]["data/epoch"]


@pytest.mark.setting("pretrain:batch.rampup_batch_size")
def test_pretrain_ramps_up_its_batch(tmp_path):
    lines = _run(tmp_path, batch__rampup_batch_size=[2, 2, 4], batch__global_batch_size=6)
    assert [line["batch_size"] for line in lines[1:]] == [2.0, 4.0, 6.0, 6.0]
    assert lines[-1]["consumed_tokens"] == 18 * LENGTH


@pytest.mark.setting("pretrain:model.fresh_weights", "pretrain:evaluation.sequences")
def test_pretrain_evaluates_the_weights_that_are_given(tmp_path):
    model = write_model(tmp_path / "given")
    other = write_tokens(tmp_path, "short", count=3)
    lines = _run(
        tmp_path,
        f"--model.path={model}",
        "--model.fresh_weights=false",
        data__validation_files=[{"path": str(other), "name": "held"}],
        data__cache_dir=str(tmp_path / "orders"),
        evaluation={"sequences": 1},
        steps=1,
    )
    tokens = [token for line in _first_sequences(tmp_path, other, 1) for token in line]
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = torch.tensor([tokens])
    loss = reference(ids, labels=ids).loss.item()
    assert lines[0]["eval/held/loss"] == pytest.approx(loss, rel=1e-5)
    assert lines[0]["eval/held/perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)


def _first_sequences(directory: Path, prefix: Path, count: int) -> list[list[int]]:
    """Read by megatron-core's own indices, which the run has left in its cache."""
    (folder,) = (directory / "orders").glob("short-*")
    document, sample, shuffle = (
        numpy.load(next(folder.glob(f"*{name}_index.npy")))
        for name in ("document", "sample", "shuffle")
    )
    found = []
    for row in shuffle[:count]:
        (first, start), (last, end) = sample[row], sample[row + 1]
        texts = [documents(3)[each] for each in document[first : last + 1]]
        texts[-1] = texts[-1][: end + 1]
        texts[0] = texts[0][start:]
        found.append([token for text in texts for token in text])
    return found


@pytest.mark.setting("pretrain:data.cache_dir", "pretrain:data.validation_files")
def test_pretrain_keeps_orders_where_it_is_told_to(tmp_path):
    other = write_tokens(tmp_path, "other", count=9)
    lines = _run(
        tmp_path,
        data__cache_dir=str(tmp_path / "orders"),
        data__validation_files=[str(other)],
        steps=1,
    )
    names = {path.name.partition("-")[0] for path in (tmp_path / "orders").iterdir()}
    assert names == {"text", "other"}
    assert not (tmp_path / "cache").exists()
    assert all("eval/other/loss" in line for line in lines)


@pytest.mark.setting("pretrain:data.validation_share", "pretrain:evaluation.every")
def test_pretrain_evaluates_on_documents_kept_apart(tmp_path):
    lines = _run(tmp_path, data__validation_share=0.25, evaluation={"every": 2}, steps=3)
    assert ["eval/text/loss" in line for line in lines] == [True, False, True, True]
    assert lines[-1]["eval/text/loss"] < lines[0]["eval/text/loss"]
    assert lines[1]["data/epoch"] > 4 / 75  # 83 sequences with them.


@pytest.mark.setting("pretrain:data.document_mask")
def test_pretrain_with_a_document_mask_has_fewer_targets(tmp_path):
    lines = _run(tmp_path, data__document_mask=True, steps=2)
    assert 3 * LENGTH < lines[1]["targets"] < 4 * LENGTH
    assert lines[1]["consumed_tokens"] == 4 * LENGTH


@pytest.mark.setting("pretrain:model.init_method_std")
def test_pretrain_with_small_fresh_weights_begins_at_chance(tmp_path):
    lines = _run(tmp_path, model__init_method_std=1e-5, steps=1)
    assert lines[1]["loss"] == pytest.approx(math.log(64), rel=1e-6)


@pytest.mark.setting("pretrain:batch.z_loss_coefficient", "pretrain:data.train_files")
def test_pretrain_minimises_the_z_loss_too(tmp_path):
    without = _run(tmp_path / "without", steps=3)
    pulled = _run(tmp_path / "pulled", steps=3, batch__z_loss_coefficient=1.0)
    assert pulled[1]["loss"] == without[1]["loss"]
    assert pulled[1]["grad_norm"] != without[1]["grad_norm"]
    assert pulled[-1]["loss"] != without[-1]["loss"]
    # log 64 squared is 17.3.
    assert 16 < pulled[1]["z_loss"] < 18.5
    assert "z_loss" not in without[1]


def test_pretrain_reports_the_loss_that_balances_experts(tmp_path):
    balanced = {"moe_aux_loss_coeff": 1.0, "moe_router_load_balancing_type": "aux_loss"}
    lines = _run(tmp_path, experts=True, model__megatron=balanced, steps=4)
    losses = [line["moe_aux_loss"] for line in lines[1:]]
    # 1 where all experts get as much.
    assert all(0.9 < loss < 2 for loss in losses)


@pytest.mark.setting("pretrain:logging.peak_tflops")
def test_pretrain_reports_how_fast_it_is(tmp_path):
    _run(tmp_path, logging__peak_tflops=2.0, steps=1)
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[1])
    assert line["tokens_per_second"] == pytest.approx(4 * LENGTH / line["time/step"])
    assert line["mfu"] == pytest.approx(line["model_tflops_per_gpu"] / 2.0)
    # 2 layers: queries and output 32 x 32, keys and values 16 x 32, three matrices 48 x 32; half
    # of 16 tokens attended to by 32 query columns; 64 tokens of the vocabulary.
    layer = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32) + 4 * 32 * LENGTH / 2
    flops = 3 * (2 * layer + 2 * 64 * 32)
    expected = line["tokens_per_second"] * flops / 1e12
    assert line["model_tflops_per_gpu"] == pytest.approx(expected)


def test_pretrain_knows_no_share_of_a_peak_without_one(tmp_path):
    _run(tmp_path, steps=1)
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[1])
    assert "tokens_per_second" in line
    assert "mfu" not in line
