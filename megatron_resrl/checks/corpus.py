"""The token files of pretraining: whole, of the model's vocabulary, and enough of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from megatron_resrl.checks.facts import PretrainFacts
from megatron_resrl.checks.output import check_directory
from megatron_resrl.config.problems import Kind, Problem
from megatron_resrl.config.schema_pretrain import PretrainDataConfig
from megatron_resrl.corpus.dataset import bin_path, check_indexed_dataset, idx_path
from megatron_resrl.corpus.index_file import read_index
from megatron_resrl.corpus.manifest import check_tokenizer
from megatron_resrl.corpus.sequences import (
    cache_folder,
    documents_to_train_on,
    num_sequences,
)
from megatron_resrl.corpus.token_files import TokenFile, resolve_token_files
from megatron_resrl.errors import InputError, SettingError

_TRAIN, _VALIDATION = "data.train_files", "data.validation_files"


def _check_files(
    setting: str, files: Sequence[TokenFile], vocab_size: int | None, tokenizer: Any
) -> Iterator[Problem]:
    """Each dataset can be read, and its token ids are the model's; `tokenizer` may be None."""
    for file in files:
        here = all(path(file.prefix).is_file() for path in (bin_path, idx_path))
        try:
            check_indexed_dataset(file.prefix, vocab_size, allow_empty=True)
            if tokenizer is not None:
                check_tokenizer(file.prefix, tokenizer)
        except InputError as error:
            yield _of_file(setting, file, error, "recipe" if here else "machine")


def _of_file(setting: str, file: TokenFile, error: InputError, kind: Kind) -> Problem:
    problem, _, fix = str(error).rpartition("; ")
    return Problem(setting, file.prefix, problem or fix, fix, kind)


def _check_given(data: PretrainDataConfig) -> Iterator[Problem]:
    if not data.train_files:
        fix = "give prefixes of token files that tools/preprocess_data.py made"
        yield Problem(_TRAIN, data.train_files, "there is nothing to train on", fix)
    if data.validation_files and data.validation_share:
        problem = "data.validation_files are given, so that no documents need to be kept"
        share = data.validation_share
        yield Problem("data.validation_share", share, problem, "leave out one of the two")


def _check_validation_weights(files: Sequence[TokenFile]) -> Iterator[Problem]:
    for file in files:
        if file.weight is not None:
            problem = f"{file.prefix} has a weight, and each validation file is a set of its own"
            yield Problem(_VALIDATION, {file.prefix: file.weight}, problem, "leave it out")


def _check_sizes(
    training: Sequence[TokenFile],
    validation: Sequence[TokenFile],
    data: PretrainDataConfig,
    batch_size: int,
) -> Iterator[Problem]:
    """Sequences of each file, and of a whole epoch; files have been found to be right."""
    length, share = data.sequence_length, data.validation_share
    total = 0
    for file in training:
        lengths = read_index(idx_path(file.prefix)).lengths
        cut = documents_to_train_on(len(lengths), share)
        found = num_sequences(lengths[:cut], length)
        total += found
        if not found:
            yield _too_short(_TRAIN, file, int(lengths[:cut].sum()), length)
        if share and not num_sequences(lengths[cut:], length):
            problem = (
                f"the last {len(lengths) - cut} documents of {file.prefix} have "
                f"{int(lengths[cut:].sum())} tokens, too few for a sequence of {length} and its "
                "last target"
            )
            fix = "keep a larger share, or give data.validation_files"
            yield Problem("data.validation_share", share, problem, fix)
    for file in validation:
        lengths = read_index(idx_path(file.prefix)).lengths
        if not num_sequences(lengths, length):
            yield _too_short(_VALIDATION, file, int(lengths.sum()), length)
    if 0 < total < batch_size:
        problem = f"the training files hold {total} sequences of {length} tokens"
        fix = "use a smaller batch, shorter sequences (data.sequence_length) or more text"
        yield Problem("batch.global_batch_size", batch_size, problem, fix)


def _too_short(setting: str, file: TokenFile, tokens: int, length: int) -> Problem:
    problem = f"its {tokens} tokens are too few for a sequence of {length} and its last target"
    return Problem(setting, file.prefix, problem, "leave it out, or use a smaller sequence_length")


def _check_cache(cache_dir: str | None, files: Sequence[TokenFile]) -> Iterator[Problem]:
    """An order is written whenever an epoch begins, long after the run's start."""
    folders = dict.fromkeys(str(cache_folder(file.prefix, cache_dir)) for file in files)
    for folder in folders:
        yield from check_directory("data.cache_dir", folder)


def check_corpus(facts: PretrainFacts) -> Iterator[Problem]:
    """All that concerns `data`."""
    data, batch = facts.recipe.data, facts.recipe.batch
    yield from _check_given(data)
    training, problems = resolve_token_files(_TRAIN, data.train_files)
    validation, more = resolve_token_files(_VALIDATION, data.validation_files)
    problems += [*more, *_check_validation_weights(validation)]
    size = facts.hf_config.get("vocab_size")
    # Other checks say what is wrong with a tokenizer that cannot be read.
    readable = facts.hf_config and not isinstance(facts.tokenizer, SettingError)
    tokenizer = facts.tokenizer if readable else None
    for setting, files in ((_TRAIN, training), (_VALIDATION, validation)):
        problems += _check_files(setting, files, size, tokenizer)
    problems += [] if problems else _check_cache(data.cache_dir, [*training, *validation])
    yield from problems
    if not problems and data.sequence_length > 0 and 0 <= data.validation_share < 1:
        yield from _check_sizes(training, validation, data, batch.global_batch_size)
