"""Files of a set: given ones, and real downloads from a server of this process."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from megatron_resrl.errors import InputError
from megatron_resrl.preparation.sources import Download, source_files

CONTENT = b'{"question": "1 + 1?", "answer": "2"}\n'
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "set.jsonl").write_bytes(CONTENT)
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_source_files_fetches_once_and_checks(address: str, tmp_path: Path) -> None:
    download = Download(f"{address}/set.jsonl", SHA256, "deep/own.jsonl")
    (file,) = source_files(["default"], [download], tmp_path / "downloads")
    assert file.path == tmp_path / "downloads/deep/own.jsonl"
    assert (file.path.read_bytes(), file.sha256, file.origin) == (CONTENT, SHA256, download.url)
    (tmp_path / "served/set.jsonl").unlink()
    assert source_files(["default"], [download], tmp_path / "downloads") == [file]


def test_source_files_refuses_other_content(address: str, tmp_path: Path) -> None:
    download = Download(f"{address}/set.jsonl", "0" * 64)
    with pytest.raises(InputError, match=f"has the SHA-256 {SHA256}, and .* should have 0000"):
        source_files(["default"], [download], tmp_path)


@pytest.mark.parametrize("path", ["none.jsonl", "\x01"])
def test_source_files_says_how_to_give_what_it_cannot_fetch(
    address: str, tmp_path: Path, path: str
) -> None:
    with pytest.raises(InputError) as caught:
        source_files([f"{address}/{path}"], [], tmp_path / "downloads")
    assert f"{address}/{path} cannot be fetched" in str(caught.value)
    assert "--source FILE" in str(caught.value)
    assert [each for each in tmp_path.rglob("*") if each.suffix == ".incomplete"] == []


def test_source_files_names_an_unreachable_address(tmp_path: Path) -> None:
    # Port 9 of this machine: nobody listens.
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:9/a\.jsonl cannot be fetched"):
        source_files(["http://127.0.0.1:9/a.jsonl"], [], tmp_path)


def test_source_files_takes_folders_and_names_missing_files(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        (tmp_path / name).write_bytes(CONTENT)
    files = source_files([str(tmp_path)], [], tmp_path)
    assert [file.path.name for file in files] == ["a.jsonl", "b.jsonl"]
    with pytest.raises(InputError, match=r"--source .*c.jsonl: there is no such file"):
        source_files([str(tmp_path / "c.jsonl")], [], tmp_path)
