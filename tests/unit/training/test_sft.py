"""Supervised fine-tuning on one rank: what it learns, writes, and resumes."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_chat import conversation, write_chat_model, write_chat_task
from tiny_task import read_metrics
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_resrl.config.load import load_recipe
from megatron_resrl.config.schema_sft import SftRecipe
from megatron_resrl.errors import InputError
from megatron_resrl.training.interruption import Interrupted
from megatron_resrl.training.sft import train


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("model"))


def run(directory: Path, model: Path | str, *overrides: str, **sections: Any) -> Path:
    """Fine-tunes; returns the run's folder."""
    directory.mkdir(exist_ok=True)
    recipe = write_chat_task(directory, model={"path": str(model)}, **sections)
    train(load_recipe(str(recipe), overrides, SftRecipe))
    return directory / "run"


@pytest.fixture(scope="module")
def straight(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps without interruption."""
    return run(tmp_path_factory.mktemp("straight"), model)


def labelled(tokenizer: Any, row: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and transformers' labels: everything behind 62, the assistant's mark, up to its end."""
    text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    labels, learned = [], False
    for token in ids:
        labels.append(token if learned else -100)
        learned = token == 62 or (learned and token != tokenizer.eos_token_id)
    return torch.tensor([ids]), torch.tensor([labels])


@pytest.mark.setting("sft:data.train_files", "sft:batch.global_batch_size")
def test_sft_loss_and_gradient_equal_those_of_transformers(model, tmp_path):
    rows = [conversation(number, 1 + number % 3) for number in range(16)]
    sections: dict[str, Any] = {"batch": {"global_batch_size": 16}, "evaluation": {"files": []}}
    folder = run(tmp_path, model, "--steps", "1", "--optimizer.clip_grad", "0", **sections)
    theirs = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model)
    total, targets = torch.zeros(()), 0
    for row in rows:
        ids, labels = labelled(tokenizer, row)
        logits = theirs(ids).logits[0, :-1]
        total = total + torch.nn.functional.cross_entropy(
            logits, labels[0, 1:], ignore_index=-100, reduction="sum"
        )
        targets += int((labels[0, 1:] != -100).sum())
    (total / targets).backward()
    norm = torch.stack([each.grad.square().sum() for each in theirs.parameters()]).sum().sqrt()
    _, found = read_metrics(folder)
    assert found["targets"] == targets
    # fp32 sums in other orders.
    assert found["loss"] == pytest.approx(float(total.detach()) / targets, rel=1e-5)
    assert found["grad_norm"] == pytest.approx(float(norm), rel=1e-5)


@pytest.mark.setting("sft:evaluation.files", "sft:evaluation.every")
def test_sft_measures_held_out_conversations(straight):
    lines = read_metrics(straight)
    measured = [line["step"] for line in lines if "eval/held/loss" in line]
    assert measured == [0, 2, 4]
    assert lines[-1]["eval/held/loss"] < lines[0]["eval/held/loss"] < 4.4
    exponential = torch.tensor(lines[0]["eval/held/loss"]).exp()
    assert lines[0]["eval/held/perplexity"] == pytest.approx(float(exponential), rel=1e-5)


def answers(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "evaluation/step_000000/held.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.setting("sft:evaluation.samples", "sft:evaluation.max_response_length")
@pytest.mark.setting("sft:evaluation.temperature", "sft:evaluation.max_conversations")
def test_sft_writes_answers_to_read(model, straight, tmp_path):
    own = {"evaluation": {"samples": 1, "max_response_length": 2, "temperature": 3.0}}
    own["evaluation"]["max_conversations"] = 3
    folder = run(tmp_path, model, "--steps", "1", **own)
    greedy, (sampled,) = answers(straight), answers(folder)
    assert len(greedy) == 2
    assert {"prompt", "response", "reference", "tokens", "finish_reason"} <= set(greedy[0])
    assert sampled["prompt"] == greedy[0]["prompt"]
    assert greedy[0]["response"].split()[:2] != sampled["response"].split()
    assert sampled["tokens"] <= 2
    assert max(answer["tokens"] for answer in greedy) > 2
    (start, *_), (fewer, *_) = read_metrics(straight), read_metrics(folder)
    assert fewer["eval/held/targets"] < start["eval/held/targets"]


def test_sft_interrupted_resumes_to_the_same_bits(model, straight, tmp_path):
    armed = [True]

    def ask_to_end(event: str, arguments: tuple) -> None:
        if event == "megatron_resrl.step" and arguments[0] == 3 and armed:
            armed.clear()
            os.kill(os.getpid(), signal.SIGUSR1)

    sys.addaudithook(ask_to_end)
    with pytest.raises(Interrupted, match="after step 3, which is saved"):
        run(tmp_path, model)
    assert run(tmp_path, model) == tmp_path / "run"
    assert read_metrics(tmp_path / "run") == read_metrics(straight)
    ours, theirs = (
        load_file(each / "hf" / "model.safetensors") for each in (tmp_path / "run", straight)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_sft_goes_on_from_the_run_of_a_stage_before(straight, tmp_path):
    sections: dict[str, Any] = {"checkpoint": {"export_hf": False}}
    folder = run(tmp_path, straight, "--steps", "1", **sections)
    (start, *_), before = read_metrics(folder), read_metrics(straight)[-1]
    assert start["eval/held/loss"] == pytest.approx(before["eval/held/loss"], rel=1e-6)


@pytest.mark.setting("sft:epochs", "sft:data.shuffle")
def test_sft_epochs_say_how_long_the_run_is(model, tmp_path):
    folder = run(tmp_path, model, "--epochs", "1.5", "--data.shuffle", "false")
    lines = read_metrics(folder)
    assert [line["data/epoch"] for line in lines[1:]] == [0.5, 1.0, 1.5]
    # In the order of the file the third step has the conversations of the first.
    assert lines[1]["targets"] == lines[3]["targets"] != lines[2]["targets"]


@pytest.mark.setting("sft:data.max_length")
def test_sft_reports_conversations_that_are_too_long(model, tmp_path, caplog):
    with pytest.raises(InputError, match=r"data\.train_files hold .* fewer than batch\.global"):
        run(tmp_path, model, "--data.max_length", "8")
    assert "of 16 conversations are longer than data.max_length = 8 tokens" in caplog.text
    with pytest.raises(InputError, match="no conversation is left, raise the limit"):
        run(tmp_path, model, "--data.max_length", "3")


@pytest.mark.setting("sft:data.chat_template_kwargs")
def test_sft_gives_the_template_its_arguments(model, tmp_path):
    with pytest.raises(InputError, match="does not know 'thinking'"):
        run(tmp_path, model, "--data.chat_template_kwargs", "{thinking: true}")


def test_sft_learns_exact_tokens(model, tmp_path):
    rows = [{"prompt_token_ids": [0, 61, n], "response_token_ids": [n + 1, 1]} for n in (3, 9)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "exact.jsonl").write_text(text)
    own = {"data": {"train_files": str(tmp_path / "exact.jsonl")}}
    folder = run(tmp_path, model, "--steps", "1", "--batch.global_batch_size", "2", **own)
    _, line = read_metrics(folder)
    assert (line["targets"], line["data/tokens"]) == (4, 10)
