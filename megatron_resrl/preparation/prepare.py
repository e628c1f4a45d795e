"""Makes question files of public sets, each with a card that says what became of its rows."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from megatron_resrl.data.rows import read_rows
from megatron_resrl.errors import InputError
from megatron_resrl.preparation.choice import Options, choose
from megatron_resrl.preparation.datasets import Dataset, find_dataset
from megatron_resrl.preparation.pass_rates import read_pass_rates
from megatron_resrl.preparation.question import first_of
from megatron_resrl.preparation.selection import Duplicates, Row
from megatron_resrl.preparation.sources import SourceFile, source_files

DOWNLOADS = "downloads"
"""Folder below the output."""


def prepare_data(
    dataset: str,
    output: str,
    *,
    source: list[str] | None = None,
    duplicates: Duplicates | None = None,
    near: float = 0.8,
    against: list[str] | None = None,
    pass_rates: list[str] | None = None,
    keep_between: list[float] | None = None,
    held_out: float = 0.0,
) -> str:
    """Makes a question file of a public set, and a card that says what became of its rows.

    Args:
        dataset: Name of the set, which is also the first word of the command.
        output: Folder that gets <dataset>.parquet and <dataset>.json.
        source: Files, folders or addresses of the set as it is published; default, or `default`:
            its own address.
        duplicates: Which copies of questions are removed: none; identical texts; normalised, which
            differ in case, punctuation or space; near, which share most words. Default: none of an
            evaluation, normalised ones of a training set.
        near: Share of runs of three words (Jaccard index) from which on texts are near.
        against: Question files of evaluations, whose questions are removed from this set.
        pass_rates: Responses that an evaluation of the set by a model kept
            (OUTPUT_DIR/evaluation/<dataset>.jsonl or .parquet).
        keep_between: Smallest and largest pass rate of the questions that are kept, 0.1 and 0.9 by
            default; with `pass_rates`.
        held_out: Share of the questions that go to <dataset>_held_out.parquet.

    Returns:
        What was done, for people.

    Raises:
        InputError: Something given cannot be used, or a file of the output is there already.
    """
    described = find_dataset(dataset)
    options = Options(
        duplicates=duplicates or ("normalised" if described.training else "none"),
        near=near,
        against=against or [],
        pass_rates=pass_rates or [],
        keep_between=keep_between,
        held_out=held_out,
    )
    options.check()
    if not source and not described.downloads:
        raise InputError(
            f"{dataset} is not fetched from here: get its files from {described.page}, and name "
            "them with --source"
        )
    folder = Path(output)
    paths = _new_paths(folder, dataset, with_held_out=held_out > 0)
    evaluation = _evaluation_questions(options.against)
    rates = read_pass_rates(options.pass_rates) if options.pass_rates else None
    files = source_files(source or ["default"], described.downloads, folder / DOWNLOADS)
    rows, read = _questions(described, dataset, files)
    chosen = choose(rows, options, evaluation, rates)
    report = {"rows_read": read, "without_answer": read - len(rows), **chosen.report}
    if not chosen.train:
        raise InputError(f"{dataset}: no question is left: {json.dumps(report)}")
    folder.mkdir(parents=True, exist_ok=True)
    for path, part in zip(paths, (chosen.train, chosen.held_out)[: len(paths) - 1], strict=False):
        _write_table(path, part)
    card = {
        "name": dataset,
        "licence": described.licence,
        "sources": [_source(file, described) for file in files],
        "options": dataclasses.asdict(options),
        **report,
        "found": [dataclasses.asdict(each) for each in chosen.found],
    }
    _replace(paths[-1], json.dumps(card, indent=1, ensure_ascii=False).encode())
    return _summary(paths, report)


def _new_paths(folder: Path, name: str, *, with_held_out: bool) -> list[Path]:
    """Of the questions, those held out if any are to be, and the card."""
    names = [f"{name}.parquet", *[f"{name}_held_out.parquet"] * with_held_out, f"{name}.json"]
    paths = [folder / each for each in names]
    for path in paths:
        if path.exists():
            raise InputError(f"--output = {str(folder)!r}: {path} is there already; remove it")
    return paths


def _questions(dataset: Dataset, name: str, files: Sequence[SourceFile]) -> tuple[list[Row], int]:
    """The questions that have an answer, and how many rows there are."""
    rows, read = [], 0
    for where, row in dataset.read([file.path for file in files]):
        if question := dataset.form(row, where, name):
            rows.append(Row(read, question))
        read += 1
    return rows, read


def _evaluation_questions(paths: Sequence[str]) -> list[tuple[str, str]]:
    """Where each question of evaluations is, and its text."""
    found = []
    for path in paths:
        for number, (where, row) in enumerate(read_rows(Path(path))):
            key, value = first_of(row, where, "question", "problem", "prompt")
            if isinstance(value, list) and value and isinstance(value[-1], dict):
                value = value[-1].get("content")
            if not isinstance(value, str):
                raise InputError(f"{where}: {key} holds no text; give a question file")
            found.append((f"{path}, row {number}", value))
    return found


def _source(file: SourceFile, dataset: Dataset) -> dict[str, Any]:
    published = {each.sha256 for each in dataset.downloads}
    return {
        "from": file.origin,
        "sha256": file.sha256,
        "bytes": file.path.stat().st_size,
        "as_published": file.sha256 in published,
    }


def _write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    names = dict.fromkeys(name for row in rows for name in row)
    table = pyarrow.Table.from_pylist([{name: row.get(name) for name in names} for row in rows])
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    _replace(path, sink.getvalue())


def _replace(path: Path, content: Any) -> None:
    """Writes a file at once, so that it is never seen in part."""
    incomplete = path.with_name(f"{path.name}.incomplete")
    incomplete.write_bytes(content)
    os.replace(incomplete, path)


def _summary(paths: Sequence[Path], report: dict[str, Any]) -> str:
    lines = [f"{report['rows_read']} rows, {report['without_answer']} without an answer"]
    for kind, counts in report["duplicates"].items():
        if counts["found"]:
            lines.append(f"{kind}: {counts['found']} found, {counts['removed']} removed")
    if report["in_evaluations"]:
        lines.append(f"{report['in_evaluations']} that evaluations ask removed")
    if "pass_rates" in report:
        lines += [f"{n} {kind} removed" for kind, n in report["pass_rates"].items()]
    lines.append(f"{report['rows_written']} questions -> {paths[0]}")
    if len(paths) > 2:
        lines.append(f"{report['held_out']} held out -> {paths[1]}")
    return "\n".join([*lines, f"card -> {paths[-1]}"])
