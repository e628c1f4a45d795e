"""The commands of docs/corpus.md, as a user runs them."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

from ranks import REPOSITORY
from token_files import build_from_texts, same_bytes, zstd
from transformers import AutoTokenizer

TOOLS = REPOSITORY / "tools"
TEXTS = [f"the number {number} and the next, {number + 1}" for number in range(500)]


def run(tool: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOLS / tool), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_tools_make_a_tokenizer_and_token_files(tmp_path: Path) -> None:
    lines = [json.dumps({"body": text}).encode() + b"\n" for text in TEXTS]
    (tmp_path / "a.jsonl.zst").write_bytes(zstd(b"".join(lines[:300])))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[300:])))
    inputs = [str(tmp_path / "a.jsonl.zst"), str(tmp_path / "b.jsonl.gz"), "--text-key", "body"]
    output = ["--output", str(tmp_path / "tokenizer"), "--kind", "sentencepiece"]
    trained = run("train_tokenizer.py", "--input", *inputs, *output, "--vocab_size", "310")
    assert trained.returncode == 0, trained.stderr
    assert "500 lines decoded again, all unchanged" in trained.stdout
    output = ["--output-prefix", str(tmp_path / "out"), "--tokenizer", str(tmp_path / "tokenizer")]
    written = run("preprocess_data.py", *output, "--workers", "2", "--input", *inputs)
    assert written.returncode == 0, written.stderr
    assert "documents    500" in written.stdout
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    expected = build_from_texts(tmp_path / "expected", TEXTS, tokenizer)
    assert same_bytes(tmp_path / "out_body_document", expected)
    refused = run("preprocess_data.py", *output, "--input", *inputs)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.splitlines() == [
        f"--output_prefix: {tmp_path}/out_body_document.bin exists; choose another place, or give "
        "--force to replace it"
    ]
