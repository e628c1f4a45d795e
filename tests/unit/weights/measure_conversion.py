"""Converts in a process of its own and prints how much memory that took.

Arguments: direction (to_megatron or to_hf), source, target, largest safetensors file. Prints one
line of JSON: bytes of the tensors, and peak resident memory beyond that of a tiny conversion.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from megatron_resrl.platform.cpu import adapt_megatron_core


def main() -> None:
    adapt_megatron_core()
    import tiny_families as tiny

    from megatron_resrl.weights.conversion_report import peak_memory
    from megatron_resrl.weights.convert_from_hf import convert_hf_to_megatron
    from megatron_resrl.weights.convert_to_hf import convert_megatron_to_hf

    direction, source, target, shard = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        model = tiny.write_families(Path(folder))["llama"]
        convert_hf_to_megatron(str(model), f"{folder}/megatron")
        convert_megatron_to_hf(f"{folder}/megatron", f"{folder}/back")
    before = peak_memory()
    if direction == "to_megatron":
        report = convert_hf_to_megatron(source, target, tensor_model_parallel_size=2)
    else:
        report = convert_megatron_to_hf(source, target, max_shard_size=shard)
    print(json.dumps({"bytes": report.bytes, "added": report.peak_memory - before}))


if __name__ == "__main__":
    main()
