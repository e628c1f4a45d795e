"""What belongs to a model besides its weights: configuration, tokenizer, chat template."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from megatron_resrl.config.model_place import find_model
from megatron_resrl.errors import InputError
from megatron_resrl.policy.families import find_family
from megatron_resrl.weights.config_json import read_config
from megatron_resrl.weights.megatron_folders import MARKER, holds_megatron

_PATTERNS = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.py")
_CONFIG = "config.json"
_OF_NETWORK = (_CONFIG, "generation_config.json")
"""Not the tokenizer's."""
_OF_WEIGHTS = re.compile(
    rf".+\.index(\..+)?\.json|adapter_config\.json|metadata\.json|{re.escape(MARKER)}"
)
_TEMPLATES = "additional_chat_templates"
_DTYPE_KEYS = ("dtype", "torch_dtype")
"""The newer spelling of config.json and the older."""


def copy_model_files(
    source: str | Path, target: str | Path, *, tokenizer: str | Path | None = None
) -> list[str]:
    """Copies the small files of a Hugging Face model directory, byte by byte.

    They are copied and not loaded and saved, so that a tokenizer of any kind arrives as it was:
    config.json, generation_config.json, chat templates, and the files of fast (tokenizer.json),
    sentencepiece (tokenizer.model), BPE (vocab.json, merges.txt) and custom tokenizers. Of a
    checkpoint of Megatron-LM, which has no config.json, one is written.

    Args:
        source: Of the model.
        target: Made if absent; files of the same name are replaced.
        tokenizer: Directory of another tokenizer; then that of `source` stays where it is.

    Returns:
        Names of the files, sorted.
    """
    source, target = Path(source), Path(target)
    target.mkdir(parents=True, exist_ok=True)
    origin = dict.fromkeys(_small_files(source), source)
    if tokenizer is not None:
        origin = {name: place for name, place in origin.items() if name in _OF_NETWORK}
        own = (name for name in _small_files(Path(tokenizer)) if name not in _OF_NETWORK)
        origin |= dict.fromkeys(own, Path(tokenizer))
    for name, place in origin.items():
        if (place / name).is_dir():
            shutil.copytree(place / name, target / name, dirs_exist_ok=True)
        else:
            shutil.copyfile(place / name, target / name)
    if not (source / _CONFIG).is_file() and (config := read_config(source, tokenizer)) is not None:
        text = json.dumps(config, indent=2, ensure_ascii=False)
        (target / _CONFIG).write_text(f"{text}\n", encoding="utf-8")
        origin[_CONFIG] = source
    return sorted(origin)


def _small_files(directory: Path) -> list[str]:
    names = {path.name for pattern in _PATTERNS for path in directory.glob(pattern)}
    found = sorted(name for name in names if not _OF_WEIGHTS.fullmatch(name))
    return [*found, *([_TEMPLATES] if (directory / _TEMPLATES).is_dir() else [])]


def write_model_files(
    hf_config: PretrainedConfig,
    target: Path,
    *,
    tokenizer: str | None = None,
    dtype: str | None = None,
) -> None:
    """Copies the files that a model came with, beside weights that the policy has trained.

    Args:
        hf_config: As `read_hf_config` reads it; it knows where the files are.
        target: Made if absent.
        tokenizer: Setting `model.tokenizer_path`.
        dtype: Of the weights, where config.json has to say it.
    """
    other = find_model(tokenizer).files if tokenizer else None
    copy_model_files(str(hf_config.name_or_path), target, tokenizer=other)
    write_weights_to_config(target, dtype=dtype, tied=hf_config.tie_word_embeddings)


def described_model(path: str, tokenizer: str | None, directory: Path) -> Path:
    """The directory from which other programs read the configuration of a model.

    Args:
        path: See `find_model`.
        tokenizer: Setting `model.tokenizer_path`.
        directory: Gets what a checkpoint of Megatron-LM does not have.

    Returns:
        The model's own directory, or `directory` for a checkpoint of Megatron-LM.
    """
    place = find_model(path)
    if (place.files / _CONFIG).is_file() or not holds_megatron(place.weights):
        return place.files
    copy_model_files(place.files, directory, tokenizer=find_model(tokenizer or path).files)
    return directory


def written_dtype(config: dict[str, Any]) -> str | None:
    """The dtype that a config.json claims, in its newer or older spelling."""
    claimed = config.get("dtype") or config.get("torch_dtype")
    return claimed.removeprefix("torch.") if isinstance(claimed, str) else None


def write_weights_to_config(
    directory: Path, *, dtype: str | None = None, tied: bool | None = None
) -> None:
    """Writes dtype and tying of the weights into the config.json beside them, and nothing else.

    Args:
        directory: Holds config.json.
        dtype: Of the weights, e.g. bfloat16; said under the name that the file has for it, or
            under the older one, which all versions of transformers read.
        tied: Whether the output matrix is the embedding's.

    Raises:
        InputError: config.json is not a JSON object.
    """
    path = directory / _CONFIG
    text = path.read_bytes().decode()
    try:
        config = json.loads(text)
        if dtype is not None and written_dtype(config) != dtype:
            for key in [key for key in _DTYPE_KEYS if key in config] or ["torch_dtype"]:
                text = _with(text, key, dtype)
        family = find_family(config)
        said = config.get("tie_word_embeddings", False) if family is None else family.tied
        if tied is not None and said != tied:
            text = _with(text, "tie_word_embeddings", tied)
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path} is not a JSON object ({error}); fetch the model again") from error
    if text.encode() != path.read_bytes():
        path.write_bytes(text.encode())


def _with(text: str, key: str, value: str | bool) -> str:
    """The text of a JSON object with one value changed or added, the rest as it is written."""
    content = json.loads(text)
    wanted, entry = content | {key: value}, f'"{key}": {json.dumps(value)}'
    if key in content:
        changed = re.sub(rf'"{key}"\s*:\s*("[^"]*"|\w+)', entry, text)
    else:
        changed = re.sub(r"\s*\}\s*\Z", f",\n  {entry}\n}}\n", text)
    try:
        if json.loads(changed) == wanted:
            return changed
    except ValueError:
        pass
    # The name occurs deeper too, or there is no other entry.
    return json.dumps(wanted, indent=2, ensure_ascii=False) + "\n"
