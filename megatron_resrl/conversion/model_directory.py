"""Shared by both directions of conversion: the model's own files, dtypes, sizes of shards."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PretrainedConfig

from megatron_resrl.errors import InputError
from megatron_resrl.policy.families import SUPPORTED_ARCHITECTURES
from megatron_resrl.weights.config_json import read_config
from megatron_resrl.weights.expected import first_few
from megatron_resrl.weights.vocabulary import read_ids, tokens_beyond

RELEASE = "release"
"""Content of Megatron-LM's marker file for a converted model: the name of its folder."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DtypeName = Literal["float32", "float16", "bfloat16"]

_OF_A_LAYER = re.compile(r"(^|\.)layers\..*(weight|bias)\d*$")
_BUFFER = re.compile(r"(inv_freq|masked_bias|attn\.bias)$")
SMALLEST_SHARD = 10**6
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def read_model_config(
    directory: Path, tokenizer: Path | None = None
) -> tuple[PretrainedConfig, dict[str, Any]]:
    """config.json: parsed by transformers, and as written in the file.

    Args:
        directory: Of the model, or of a checkpoint of Megatron-LM, whose arguments say it.
        tokenizer: Directory of another tokenizer than the model's.

    Raises:
        InputError: There is none, it is not JSON, or its model cannot be converted.
    """
    # Imported here, because it needs the adapted megatron-core.
    from megatron_resrl.policy.model_config import read_hf_config

    path = directory / "config.json"
    try:
        written = read_config(directory, tokenizer)
        if written is None:
            raise InputError(f"{directory} has no config.json; give the directory of a model")
        found = (written.get("architectures") or ["no architecture"])[0]
    except InputError:
        raise
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path} is not a JSON object ({error}); fetch the model again") from error
    if found not in SUPPORTED_ARCHITECTURES:
        raise InputError(
            f"{path} names {found}; supported are {', '.join(SUPPORTED_ARCHITECTURES)}"
        )
    if written.get("quantization_config"):
        raise InputError(
            f"{path} has a quantization_config; only unquantized weights can be converted"
        )
    try:
        config = read_hf_config(str(directory), str(tokenizer) if tokenizer else None)
    except InputError:
        raise
    # transformers checks a configuration with errors of many classes.
    except Exception as error:
        raise InputError(f"transformers does not accept {path}: {error}") from error
    _check_tokenizer(tokenizer or directory, config.vocab_size)
    return config, written


def check_dtypes(
    examples: dict[str, str], claimed: str | None, asked: str | None, source: Path
) -> None:
    """Refuses dtypes that weights cannot have, and dtypes other than the one in config.json.

    Args:
        examples: Each dtype found -> name of a tensor that has it.
        claimed: Dtype in config.json, if it must be right.
        asked: Requested dtype, to which tensors of all dtypes are converted.
        source: For messages.

    Raises:
        InputError: Tensors that are not float32, float16 or bfloat16; or none of config.json's type
            without an explicit choice.
    """
    wrong = sorted(examples.keys() - DTYPES.keys())
    if wrong:
        raise InputError(
            f"{source}: {examples[wrong[0]]} is {wrong[0]}; only {', '.join(DTYPES)} can be "
            "converted"
        )
    if asked is None and claimed is not None and claimed not in examples:
        found = ", ".join(sorted(examples))
        raise InputError(
            f"{source} holds tensors of {found}, but its config.json says {claimed}; give "
            f"--dtype {min(examples)} or --dtype {claimed} to convert them"
        )


def refuse_unmapped_parameters(unexpected: tuple[str, ...], source: Path) -> None:
    """Refuses stored parameters of layers that the model has no place for.

    Args:
        unexpected: Names of stored tensors that config.json does not ask for.
        source: For messages.

    Raises:
        InputError: One is a parameter of a layer, and not a buffer that is computed anyway.
    """
    parameters = [
        name for name in unexpected if _OF_A_LAYER.search(name) and not _BUFFER.search(name)
    ]
    if parameters:
        raise InputError(
            f"{source} holds parameters of layers that a model of its config.json does not have: "
            f"{first_few(parameters)}; the two are not of one model, or the model is of an "
            "unsupported kind"
        )


def parse_bytes(text: str, option: str) -> int:
    """A size such as 5GB (10^9 bytes each), of at least `SMALLEST_SHARD`.

    Raises:
        InputError: Not a size, or a smaller one.
    """
    found = re.fullmatch(r"(\d+)\s*(|KB|MB|GB)", str(text).strip().upper())
    size = int(found[1]) * _UNITS[found[2]] if found else 0
    if size < SMALLEST_SHARD:
        few = f", {size} bytes" if size else ""
        raise InputError(
            f"{option} is {str(text)!r}{few}; give a size such as 500MB or 5GB, at least "
            f"{SMALLEST_SHARD / 10**6:g}MB"
        )
    return size


def _check_tokenizer(directory: Path, vocab_size: int) -> None:
    """Refuses a tokenizer whose ids have no row in the embedding."""
    try:
        beyond = tokens_beyond(read_ids(directory), vocab_size)
    except ValueError as error:
        raise InputError(f"{error}; fetch the model again") from error
    if beyond is not None:
        raise InputError(
            f"{directory}: {beyond}; the two are not of one model, or the embedding was not resized"
        )
