"""The token files of a run of pretraining: what it trains on, and what it measures the loss on."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass

from megatron_resrl.config.problems import RecipeError
from megatron_resrl.config.schema_pretrain import PretrainDataConfig
from megatron_resrl.corpus.blend import BlendedSequences
from megatron_resrl.corpus.sequences import (
    Cut,
    SequenceFile,
    by_tokens,
    cache_folder,
    documents_to_train_on,
    num_documents,
)
from megatron_resrl.corpus.token_files import TokenFile, resolve_token_files

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainingData:
    """As one rank sees it."""

    training: BlendedSequences
    validation: dict[str, tuple[BlendedSequences, int]]
    """Set -> its sequences, and how many of them the loss is measured on."""
    contents: dict[str, str]
    """What gives the data their meaning, see `Identity.contents`."""


def open_data(data: PretrainDataConfig, validation_sequences: int, seed: int) -> PretrainingData:
    """Opens the token files; nothing of their content is read yet.

    Args:
        data: Files, already checked, and how they are cut.
        validation_sequences: Of each validation set, if it has as many.
        seed: Of the orders.

    Raises:
        RecipeError: An entry cannot be understood.
        InputError: A file cannot be read.
    """
    named = _resolve("data.train_files", data)
    files = [_training_file(data, file, seed) for file in named]
    given = [file.weight for file in named if file.weight is not None]
    weights = given or by_tokens(files)
    total = sum(file.sequences for file in files)
    tokens = sum(file.tokens for file in files)
    logger.info("%d tokens to train on: one epoch is %d sequences", tokens, total)
    sets = _validation_files(data, named, seed)
    return PretrainingData(
        BlendedSequences(files, weights),
        {
            name: (BlendedSequences([file], [1.0]), min(validation_sequences, file.sequences))
            for name, file in sets.items()
        },
        _contents(data, files, weights, sets),
    )


def _resolve(setting: str, data: PretrainDataConfig) -> list[TokenFile]:
    entries = data.train_files if setting == "data.train_files" else data.validation_files
    files, problems = resolve_token_files(setting, entries)
    if problems:
        raise RecipeError(problems)
    return files


def _training_file(data: PretrainDataConfig, file: TokenFile, seed: int) -> SequenceFile:
    last = documents_to_train_on(num_documents(file.prefix), data.validation_share)
    cut = Cut(data.sequence_length, seed, last=last)
    return SequenceFile(file.prefix, cut, cache_folder(file.prefix, data.cache_dir))


def _validation_files(
    data: PretrainDataConfig, training: list[TokenFile], seed: int
) -> dict[str, SequenceFile]:
    """Validation files, or the last documents of the training files; by the names of the sets."""
    if data.validation_files:
        cut = Cut(data.sequence_length, seed)
        named = _resolve("data.validation_files", data)
        return {
            each.name: SequenceFile(each.prefix, cut, cache_folder(each.prefix, data.cache_dir))
            for each in named
        }
    if not data.validation_share:
        return {}
    found = {}
    for file in training:
        first = documents_to_train_on(num_documents(file.prefix), data.validation_share)
        cut = Cut(data.sequence_length, seed, first)
        found[file.name] = SequenceFile(file.prefix, cut, cache_folder(file.prefix, data.cache_dir))
    return found


def _contents(
    data: PretrainDataConfig,
    training: list[SequenceFile],
    weights: list[float],
    sets: dict[str, SequenceFile],
) -> dict[str, str]:
    digests = [file.digest for file in training]
    key = json.dumps([digests, weights, data.validation_share])
    return {
        "data: token files": hashlib.sha256(key.encode()).hexdigest()[:16],
        "data: sequence length": str(data.sequence_length),
        "data: document mask": str(data.document_mask),
    } | {f"evaluation: token files of {name}": file.digest for name, file in sets.items()}
