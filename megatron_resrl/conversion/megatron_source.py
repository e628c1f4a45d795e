"""Which Megatron checkpoint a directory holds, and where the files of its model are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PretrainedConfig

from megatron_resrl.conversion.legacy_files import LegacyReader
from megatron_resrl.conversion.megatron_layout import ModelLayout, Parameter
from megatron_resrl.conversion.torch_dist_source import TorchDistSource
from megatron_resrl.errors import InputError
from megatron_resrl.policy.families import family_of
from megatron_resrl.weights.megatron_folders import is_torch_dist

_SAME = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "kv_channels": "head_dim",
}
"""Arguments of Megatron-LM -> fields of a Hugging Face configuration."""


class MegatronSource(Protocol):
    """A model's parameters, whole, out of a checkpoint of any format."""

    arguments: dict[str, Any]
    """Of the Megatron-LM run that wrote it; empty if the checkpoint does not say."""
    hf_dtypes: Mapping[str, str]
    """Names of the types of Hugging Face tensors that are stored in a wider one."""

    @property
    def has_output_matrix(self) -> bool:
        """Whether the output matrix is not the embedding's."""

    @property
    def vocabulary_rows(self) -> int | None:
        """Rows of the embedding with their padding; None without an embedding."""

    def describe(self, parameter: Parameter) -> tuple[tuple[int, ...], torch.dtype] | None:
        """Shape of the whole parameter and its dtype; None if it is not there."""

    def unexpected(self, layout: ModelLayout) -> tuple[str, ...]:
        """What is stored beside the parameters of `layout`."""

    def read(self, parameter: Parameter) -> torch.Tensor:
        """The whole parameter."""


def open_checkpoint(
    folder: Path, tensor_parallel: int | None, pipeline_parallel: int | None
) -> MegatronSource:
    """Opens what `find_checkpoint` found.

    Args:
        folder: With the weights.
        tensor_parallel: Size that the user expects; a torch_dist checkpoint fits any.
        pipeline_parallel: Likewise.

    Raises:
        InputError: It is not whole or does not have the sizes.
    """
    if is_torch_dist(folder):
        return TorchDistSource(folder)
    return LegacyReader(folder, tensor_parallel, pipeline_parallel)


def find_model_files(path: Path, folder: Path, given: str | None) -> Path:
    """The directory with config.json and the tokenizer.

    Args:
        path: That was given as input.
        folder: With the weights.
        given: Explicitly; goes first.

    Raises:
        InputError: None has a config.json.
    """
    places = [Path(given)] if given else [path, folder / "hf", folder, folder.parent]
    for place in places:
        if (place / "config.json").is_file():
            return place
    raise InputError(
        f"no config.json in {', '.join(map(str, dict.fromkeys(places)))}; give --model-files with "
        "the directory of a Hugging Face model of the same shape"
    )


def check_arguments(source: MegatronSource, hf_config: PretrainedConfig, folder: Path) -> None:
    """Refuses a configuration that orders the same numbers of weights otherwise.

    Raises:
        InputError: Names what differs.
    """
    own = {name: getattr(hf_config, field, None) for name, field in _SAME.items()}
    own["kv_channels"] = family_of(hf_config).head_size
    if source.arguments.get("group_query_attention"):
        own["num_query_groups"] = hf_config.num_key_value_heads
    for name, value in own.items():
        saved = source.arguments.get(name)
        if saved is not None and saved != value:
            raise InputError(
                f"{folder} was saved with {name} {saved}, and config.json says {value}; give the "
                "--model-files of this model"
            )
