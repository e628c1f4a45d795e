"""The model of a Megatron checkpoint: its files, and whether config.json fits."""

from __future__ import annotations

from pathlib import Path

from transformers import PretrainedConfig

from megatron_resrl.conversion.torch_dist_source import TorchDistSource
from megatron_resrl.errors import InputError
from megatron_resrl.policy.families import family_of
from megatron_resrl.weights.config_json import read_arguments

_COMPARED = ("num_layers", "hidden_size", "num_attention_heads", "kv_channels")
"""Arguments of Megatron-LM, by the names of megatron-core's fields."""


def find_model_files(path: Path, folder: Path, given: str | None) -> Path:
    """The directory with config.json and the tokenizer; or a checkpoint that needs none.

    Args:
        path: The given input path.
        folder: Folder with the weights.
        given: An explicitly given directory, which takes precedence.

    Raises:
        InputError: None has a config.json, and the checkpoint no arguments of Megatron-LM.
    """
    places = [Path(given)] if given else [path, folder / "hf", folder, folder.parent]
    for place in places:
        if (place / "config.json").is_file():
            return place
    if given is None and read_arguments(folder):
        return folder
    raise InputError(
        f"no config.json in {', '.join(map(str, dict.fromkeys(places)))}; give --model-files with "
        "the directory of a Hugging Face model of the same shape"
    )


def check_arguments(source: TorchDistSource, hf_config: PretrainedConfig, folder: Path) -> None:
    """Refuses a configuration that orders the same numbers of weights otherwise.

    Raises:
        InputError: Names what differs.
    """
    fields = family_of(hf_config).transformer_fields()
    # Without grouped queries Megatron-LM writes an unused number of groups.
    grouped = ("num_query_groups",) if source.arguments.get("group_query_attention") else ()
    for name in (*_COMPARED, *grouped):
        saved = source.arguments.get(name)
        if saved is not None and saved != fields[name]:
            raise InputError(
                f"{folder} was saved with {name} {saved}, and config.json says {fields[name]}; "
                "give the --model-files of this model"
            )
