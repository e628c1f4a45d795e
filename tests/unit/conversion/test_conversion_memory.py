"""A conversion holds a file and a layer, never the model."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_resrl.conversion.from_hugging_face import convert_hf_to_megatron
from megatron_resrl.conversion.report import ConversionReport
from megatron_resrl.conversion.to_hugging_face import convert_megatron_to_hf

LAYERS = 16
HIDDEN, INNER, VOCABULARY = 1024, 2816, 1024
LAYER = 2 * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * INNER)
"""Bytes in bfloat16: 25.7 million."""
LARGEST = 2 * 2 * INNER * HIDDEN
"""Bytes of the largest Megatron parameter: gates and ups of a layer."""
SHARD = 60 * 10**6


def write_model(path: Path) -> None:
    """16 layers, 415 MB, in files of at most 60 MB."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=8,
        dtype=torch.bfloat16,
    )
    with torch.device("meta"):
        empty = LlamaForCausalLM(config).to(torch.bfloat16)
    empty.to_empty(device="cpu").save_pretrained(path, max_shard_size=SHARD)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    write_model(folder / "model")
    convert_hf_to_megatron(str(folder / "model"), str(folder / "megatron"), 2)
    return folder


def most_held(convert: Callable[..., ConversionReport], source: Path, **options: Any) -> int:
    """Bytes of the tensors that a conversion holds at once, by torch's count of allocations.

    Resident memory would also count pages of mapped files and what malloc keeps of freed blocks,
    and both depend on what else the machine does. torch counts a mapped file as one allocation;
    none of the model's tensors is as large as a layer, and every file here is larger.
    """
    target = source.with_name(f"{source.name}_converted")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        report = convert(str(source), str(target), **options)
    assert report.bytes > 3.5 * (SHARD + 2 * LAYER)
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = list(accumulate(change for _, change in changes if abs(change) < LAYER))
    assert held[-1] == 0
    return max(held)


def test_convert_to_megatron_holds_less_than_a_layer(folder: Path) -> None:
    held = most_held(convert_hf_to_megatron, folder / "model", tensor_model_parallel_size=2)
    assert LARGEST <= held < LAYER


def test_convert_to_hf_holds_less_than_a_file_and_a_layer(folder: Path) -> None:
    size = f"{SHARD // 10**6}MB"
    held = most_held(convert_megatron_to_hf, folder / "megatron", max_shard_size=size)
    assert SHARD - LAYER < held < SHARD + LAYER
