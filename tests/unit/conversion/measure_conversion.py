"""Converts in processes of their own and prints how much memory that took.

Arguments: folder with `model` (Hugging Face) and `legacy` (Megatron-LM's mp_rank files), and the
largest safetensors file. Prints one line of JSON: for each conversion the bytes of the tensors, and
the peak resident memory beyond that of a process that has converted a tiny model.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from megatron_resrl.platform.cpu import adapt_megatron_core


def main() -> None:
    adapt_megatron_core()
    # In the parent, so that only this process takes the time.
    from megatron_resrl.conversion.from_hugging_face import convert_hf_to_megatron
    from megatron_resrl.conversion.to_hugging_face import convert_megatron_to_hf

    folder, shard = sys.argv[1:]
    found = {
        "to Megatron": measured(
            lambda: convert_hf_to_megatron(f"{folder}/model", f"{folder}/megatron", 2)
        ),
        "to Hugging Face": measured(
            lambda: convert_megatron_to_hf(
                f"{folder}/megatron", f"{folder}/back", max_shard_size=shard
            )
        ),
        "legacy to Hugging Face": measured(
            lambda: convert_megatron_to_hf(
                f"{folder}/legacy", f"{folder}/legacy_back", max_shard_size=shard
            )
        ),
    }
    print(json.dumps(found))


def measured(convert: Callable) -> dict[str, int]:
    """Runs a conversion in a forked process, which converts a tiny model before."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()

    def run() -> None:
        from megatron_resrl.conversion.report import peak_memory

        convert_tiny()
        before = peak_memory()
        report = convert()
        results.put({"bytes": report.bytes, "added": report.peak_memory - before})

    process = context.Process(target=run)
    process.start()
    process.join(timeout=100)
    assert process.exitcode == 0
    return results.get()


def convert_tiny() -> None:
    """Both ways, so that all libraries are loaded."""
    import tiny_families as tiny

    from megatron_resrl.conversion.from_hugging_face import convert_hf_to_megatron
    from megatron_resrl.conversion.to_hugging_face import convert_megatron_to_hf

    with tempfile.TemporaryDirectory() as folder:
        model = tiny.write_families(Path(folder))["llama"]
        convert_hf_to_megatron(str(model), f"{folder}/megatron")
        convert_megatron_to_hf(f"{folder}/megatron", f"{folder}/back")


if __name__ == "__main__":
    main()
