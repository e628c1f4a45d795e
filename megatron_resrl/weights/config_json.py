"""What config.json says of a model, also of a checkpoint of Megatron-LM, which has none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_resrl.config.model_place import find_model, read_json
from megatron_resrl.errors import InputError
from megatron_resrl.policy.families.family import Unsupported
from megatron_resrl.policy.families.megatron_lm import argument_problems, config_from_arguments
from megatron_resrl.weights.megatron_folders import find_checkpoint, holds_megatron
from megatron_resrl.weights.vocabulary import TOKENIZER_FILES, TokenIds, token_ids

_CONFIG = "config.json"
_HARMLESS = ("megatron", "torch", "numpy", "transformer_engine", "enum", "types", "signal")
"""Packages whose objects Megatron-LM's arguments hold."""


class UnmappedModel(InputError):
    """A model of Megatron-LM that no supported family describes.

    Args:
        folder: Of the checkpoint.
        problems: What is not supported, each by itself.
    """

    def __init__(self, folder: Path, problems: Sequence[Unsupported]) -> None:
        self.folder, self.problems = folder, tuple(problems)
        listed = "; ".join(f"{problem} ({fix})" for problem, fix in self.problems)
        super().__init__(f"{folder}, a checkpoint of Megatron-LM, is not supported: {listed}")

    def __reduce__(self) -> tuple[type[UnmappedModel], tuple[Any, ...]]:
        return UnmappedModel, (self.folder, self.problems)


def read_config(path: str | Path, tokenizer: str | Path | None = None) -> Any:
    """The content of a model's config.json.

    A checkpoint of Megatron-LM holds the arguments that its model was built from instead. They
    are looked at without running anything that they ask for.

    Args:
        path: See `find_model`.
        tokenizer: Setting `model.tokenizer_path`, which tells the vocabulary without padding and
            the special tokens where arguments do not; None: `path` may have one.

    Returns:
        Usually a dictionary; None: neither is there.

    Raises:
        InputError: The checkpoint is damaged, in another format, or unlike every family.
        ValueError: config.json is not valid JSON.
        OSError: A file cannot be read.
    """
    place = find_model(path)
    written = read_json(place.files / _CONFIG)
    if written is not None or not holds_megatron(place.weights):
        return written
    folder = find_checkpoint(place.weights)
    arguments = read_arguments(folder)
    if not arguments:
        return None
    if problems := tuple(argument_problems(arguments)):
        raise UnmappedModel(folder, problems)
    ids = _token_ids(Path(tokenizer) if tokenizer else place.files)
    return config_from_arguments(arguments, _vocab_size(folder, arguments, ids), ids.special)


def read_arguments(folder: Path) -> dict[str, Any]:
    """The arguments of Megatron-LM in a checkpoint; empty if it holds none.

    Raises:
        InputError: They are damaged, or name something else than data.
    """
    # Here, because recipes with a config.json are checked without torch.
    from megatron_resrl.weights.torch_dist_files import common_names, read_common

    foreign = [
        name
        for name in common_names(folder)
        # Some versions of Python pickle members of an enumeration by this function.
        if name.partition(".")[0] not in _HARMLESS and name != "builtins.getattr"
    ]
    if foreign:
        raise InputError(
            f"{folder}: reading its arguments would run {', '.join(foreign)}, which is no part of "
            "a checkpoint of Megatron-LM; do not use this checkpoint"
        )
    arguments = read_common(folder).get("args")
    return {} if arguments is None else dict(vars(arguments))


def _token_ids(directory: Path) -> TokenIds:
    if any((directory / name).is_file() for name in TOKENIZER_FILES):
        return token_ids(directory)
    return TokenIds(None, {})


def _vocab_size(folder: Path, arguments: dict[str, Any], ids: TokenIds) -> int:
    """Rows of the embedding that are tokens, as far as arguments or tokenizer say it."""
    padded = arguments.get("padded_vocab_size")
    size = arguments.get("vocab_size") or ids.size or padded
    if size is None:
        raise InputError(
            f"{folder}: its arguments vocab_size and padded_vocab_size are None; give the model's "
            "tokenizer (model.tokenizer_path)"
        )
    if padded is not None and size > padded:
        raise InputError(
            f"{folder}: its argument padded_vocab_size is {padded}, and the tokenizer has {size} "
            "token ids; give the tokenizer of this model (model.tokenizer_path)"
        )
    return size
