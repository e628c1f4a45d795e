"""Text to token files: MB/s of tools/preprocess_data.py beside a plain loop, same tokenizer.

    python benchmarks/preprocess_data.py [--megabytes 40] [--runs 3] [--workers 1 2]
        [--tokenizer DIR] [--output benchmarks/results/preprocess_data.md]

The text is made up: words drawn from a vocabulary of 20,000 with Zipf's frequencies, in .jsonl
documents of 2 kB on average. Without `--tokenizer` a byte-level BPE of 32,000 tokens is trained on
it. The plain loop is what Megatron-LM's preprocessing does in one process: parse a line,
`tokenizer.encode`, `IndexedDatasetBuilder.add_document`.

All ways run in turn, `--runs` times round; medians are reported. Reading, loading the tokenizer,
starting processes and the checks at the end count, importing libraries does not. The files of all
ways are compared byte by byte. The last line has the time with most workers over the plain loop's:
below 1 is better.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import describe

from megatron_resrl.platform.cpu import adapt_megatron_core

WORDS, LETTERS = 20_000, "etaoinshrdlucmfwypvbgkqjxz"
WORDS_PER_DOCUMENT = 330


def write_text(path: Path, megabytes: float) -> None:
    """Documents of made-up words."""
    chosen = random.Random(0)
    words = ["".join(chosen.choices(LETTERS, k=chosen.randint(2, 9))) for _ in range(WORDS)]
    weights = [1 / (rank + 10) for rank in range(WORDS)]
    written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < megabytes * 1e6:
            length = chosen.randint(WORDS_PER_DOCUMENT // 10, 2 * WORDS_PER_DOCUMENT)
            text = " ".join(chosen.choices(words, weights, k=length))
            # Sentences: a capital letter and a full stop every dozen words or so.
            text = text.replace(" the", ". The").replace(" e", ", e")
            written += file.write(json.dumps({"text": text}) + "\n")


def plain_loop(text: Path, prefix: Path, tokenizer_path: str) -> None:
    """One process, one document after the other."""
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(len(tokenizer)))
    with text.open(encoding="utf-8") as file:
        for line in file:
            ids = tokenizer.encode(json.loads(line)["text"], add_special_tokens=False)
            ids.append(tokenizer.eos_token_id)
            builder.add_document(ids, [len(ids)])
    builder.finalize(f"{prefix}.idx")


def ways(
    text: Path, folder: Path, tokenizer: str, workers: list[int]
) -> dict[str, tuple[Path, Callable[[], object]]]:
    """What is compared: the prefix of its files, and how they are made."""
    from megatron_resrl.corpus.preprocess import preprocess_data

    def ours(count: int) -> tuple[Path, Callable[[], object]]:
        output = folder / f"workers_{count}"
        return Path(f"{output}_text_document"), lambda: preprocess_data(
            [str(text)], str(output), tokenizer, workers=count, force=True
        )

    plain = folder / "plain"
    found = {"plain loop": (plain, lambda: plain_loop(text, plain, tokenizer))}
    return found | {f"{count} worker(s)": ours(count) for count in workers}


def check_equal(first: Path, second: Path) -> None:
    """Raises if two prefixes do not name the same bytes."""
    for ending in (".bin", ".idx"):
        if Path(f"{first}{ending}").read_bytes() != Path(f"{second}{ending}").read_bytes():
            raise RuntimeError(f"{second}{ending} differs from {first}{ending}")


def report(text_bytes: int, seconds: dict[str, list[float]]) -> str:
    """The table and the ratio."""
    median = {way: statistics.median(each) for way, each in seconds.items()}
    plain = next(iter(median))
    lines = [
        f"{text_bytes / 1e6:.1f} MB of .jsonl",
        "",
        "| way | seconds | MB/s | time over the plain loop's |",
        "|---|---:|---:|---:|",
    ]
    lines += [
        f"| {way} | {each:.2f} | {text_bytes / each / 1e6:.2f} | {each / median[plain]:.2f} |"
        for way, each in median.items()
    ]
    last = list(median.values())[-1]
    return "\n".join([*lines, "", f"preprocess_ratio={last / median[plain]:.3f}"])


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=40)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tokenizer")
    parser.add_argument("--vocab_size", type=int, default=32000)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    header = describe(("transformers", "tokenizers", "megatron-core"), threads=1)
    adapt_megatron_core()
    from megatron_resrl.corpus.train_tokenizer import train_tokenizer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = folder / "text.jsonl"
        write_text(text, options.megabytes)
        tokenizer = options.tokenizer
        if tokenizer is None:
            tokenizer = str(folder / "tokenizer")
            train_tokenizer([str(text)], tokenizer, "bpe", options.vocab_size)
        seconds: dict[str, list[float]] = {}
        for _ in range(options.runs):
            compared = ways(text, folder, tokenizer, options.workers)
            for way, (prefix, action) in compared.items():
                began = time.perf_counter()
                action()
                seconds.setdefault(way, []).append(time.perf_counter() - began)
                check_equal(compared["plain loop"][0], prefix)
        body = report(text.stat().st_size, seconds)
    page = f"# Text to token files\n\n{header}\n\n{body}\n"
    print(page.rstrip())
    if options.output:
        options.output.write_text(page)


if __name__ == "__main__":
    main()
