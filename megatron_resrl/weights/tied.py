"""Models that config.json ties, and whose files have an output matrix of its own."""

from __future__ import annotations

import torch
from safetensors import safe_open

from megatron_resrl.config.model_place import ModelPlace, read_json
from megatron_resrl.policy.families import find_family
from megatron_resrl.weights.files import StoredTensor, stored_tensors

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
_ROWS = 4096


def is_tied_in_name_only(place: ModelPlace) -> bool:
    """Whether config.json ties a model whose files hold an output matrix of other values.

    transformers does not tie the two then. Files of a tied model may hold the embedding twice.

    Raises:
        InputError: A file cannot be read.
    """
    family = find_family(read_json(place.files / "config.json") or {})
    tied = family is not None and family.tied
    if not tied or not any(place.weights.glob("*.safetensors")):
        return False
    stored = stored_tensors(place.weights)
    if EMBEDDING not in stored or HEAD not in stored:
        return False
    return not _equal(stored[EMBEDDING], stored[HEAD])


def _equal(first: StoredTensor, second: StoredTensor) -> bool:
    if first.shape != second.shape:
        return False
    with safe_open(first.file, "pt") as a, safe_open(second.file, "pt") as b:
        parts = (a.get_slice(EMBEDDING), b.get_slice(HEAD))
        return all(
            torch.equal(*(part[start : start + _ROWS].float() for part in parts))
            for start in range(0, first.shape[0], _ROWS)
        )
