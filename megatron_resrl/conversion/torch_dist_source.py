"""Reads a model's parameters from a torch_dist checkpoint of any layer specification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from megatron_resrl.conversion.megatron_layout import ModelLayout, Parameter
from megatron_resrl.weights.megatron_names import is_weight, position, stored_keys
from megatron_resrl.weights.torch_dist_files import TorchDistReader, read_common

HF_DTYPES = "hf_dtypes"
"""Among the values that belong to no rank: types of Hugging Face tensors stored in a wider one."""


class TorchDistSource:
    """Finds each parameter in the stored tensors, and reads it."""

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: Holds .metadata.

        Raises:
            InputError: The checkpoint is not whole.
        """
        self._reader = TorchDistReader(folder)
        self._tensors = self._reader.tensors
        content = read_common(folder)
        self.hf_dtypes: dict[str, str] = content.get(HF_DTYPES, {})
        self.arguments: dict[str, Any] = dict(vars(content["args"])) if "args" in content else {}

    @property
    def has_output_matrix(self) -> bool:
        """Whether the output matrix is untied from the embedding."""
        return "output_layer.weight" in self._tensors

    @property
    def vocabulary_rows(self) -> int | None:
        """Rows of the embedding with their padding; None without an embedding."""
        stored = self._tensors.get("embedding.word_embeddings.weight")
        return stored[0][0] if stored else None

    def describe(self, parameter: Parameter) -> tuple[tuple[int, ...], torch.dtype] | None:
        """Shape and dtype of the whole parameter; None if the checkpoint lacks it.

        Where a stored tensor has other numbers of layers or experts, the shape holds those too.
        """
        keys = self._keys(parameter)
        if not keys:
            return None
        stored, dtype = self._tensors[keys[0]]
        axes = len(position(parameter.name, keys[0]))
        piece = parameter.pieces[0]
        if axes == piece.leading and stored[:axes] != piece.global_shape[:axes]:
            return stored, dtype
        shape = stored[axes:]
        return (len(keys) * shape[0], *shape[1:]), dtype

    def unexpected(self, layout: ModelLayout) -> tuple[str, ...]:
        """Keys of the model's stored tensors that belong to no parameter of `layout`."""
        used = {key for parameter in layout.parameters for key in self._keys(parameter)}
        rest = self._tensors.keys() - used
        return tuple(sorted(key for key in rest if is_weight(key)))

    def read(self, parameter: Parameter) -> torch.Tensor:
        """The whole parameter."""
        parts = []
        for key in self._keys(parameter):
            place = position(parameter.name, key)
            shape = self._tensors[key][0][len(place) :]
            offset = (*place, *(0 for _ in shape))
            parts.append(self._reader.read(key, offset, (1,) * len(place) + shape).reshape(shape))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _keys(self, parameter: Parameter) -> list[str]:
        """Where it is stored: under one key, or gates and ups under one each; or nowhere."""
        for key in stored_keys(parameter.name, parameter.pieces[0].key):
            for keys in ([key], [f"{key}_w", f"{key}_v"]):
                if all(k in self._tensors for k in keys):
                    return keys
        return []
