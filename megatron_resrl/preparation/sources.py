"""The files that a set is made of: given, or fetched from where they are published."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import httpx

from megatron_resrl.data.file_entries import expanded
from megatron_resrl.errors import InputError

_TIMEOUT_S = 60.0
"""Without a byte."""
_PIECE = 1 << 20


@dataclass(frozen=True)
class Download:
    """A file as it is published."""

    url: str
    sha256: str | None
    """Of the file; None: the address may serve newer versions."""
    name: str = ""
    """Path below the folder of downloads; by default the last part of the address."""

    @property
    def path(self) -> str:
        """Where it is put, below the folder of downloads."""
        return self.name or PurePosixPath(unquote(urlsplit(self.url).path)).name


@dataclass(frozen=True)
class SourceFile:
    """A file that questions are read from."""

    path: Path
    origin: str
    """Address, or path as it was given."""
    sha256: str


def source_files(
    given: Sequence[str], downloads: Sequence[Download], folder: Path
) -> list[SourceFile]:
    """The files of a set; those that have to be fetched are put into a folder, once.

    Args:
        given: Files, folders, patterns or addresses; `default` alone: where the set is published.
        downloads: What `default` means.
        folder: Of downloads.

    Raises:
        InputError: A file is not there, or cannot be fetched, or is another than was published.
    """
    files: list[SourceFile] = []
    for each in given:
        if each == "default":
            files += [_fetched(download, folder) for download in downloads]
        elif each.startswith(("http://", "https://")):
            files.append(_fetched(Download(each, None), folder))
        else:
            paths = [Path(path) for path in expanded(each)]
            missing = [path for path in paths if not path.is_file()]
            if missing or not paths:
                raise InputError(
                    f"--source {each}: there is no such file; relative paths start from "
                    f"{Path.cwd()}"
                )
            files += [SourceFile(path, str(path), sha256_of(path)) for path in paths]
    return files


def sha256_of(path: Path) -> str:
    """Of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetched(download: Download, folder: Path) -> SourceFile:
    path = folder / download.path
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        incomplete = path.with_name(f"{path.name}.incomplete")
        try:
            _fetch(download.url, incomplete)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            incomplete.unlink(missing_ok=True)
            raise InputError(
                f"{download.url} cannot be fetched ({type(error).__name__}: {error}); fetch it on "
                f"a machine that reaches it, put it to {path} or name it with --source FILE"
            ) from error
        os.replace(incomplete, path)
    found = sha256_of(path)
    if download.sha256 not in (None, found):
        raise InputError(
            f"{path} has the SHA-256 {found}, and {download.url} should have {download.sha256}; "
            "remove the file to fetch it again, or name it with --source if it is meant"
        )
    return SourceFile(path, download.url, found)


def _fetch(url: str, path: Path) -> None:
    with (
        httpx.stream("GET", url, follow_redirects=True, timeout=_TIMEOUT_S) as answer,
        path.open("wb") as file,
    ):
        answer.raise_for_status()
        for piece in answer.iter_bytes(_PIECE):
            file.write(piece)
