"""Writes text as token files for pretraining; see docs/corpus.md.

python tools/preprocess_data.py --input part-*.jsonl.zst --output_prefix data/web \
    --tokenizer TOKENIZER --workers 16
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_resrl.platform.cpu import adapt_megatron_core


def main() -> int:
    """Runs the command. Returns its exit status."""
    # First, because megatron-core warns of what a CPU lacks when it is imported.
    adapt_megatron_core()
    from megatron_resrl.config.function_command import run_function
    from megatron_resrl.corpus.preprocess import preprocess_data

    return run_function(preprocess_data)


if __name__ == "__main__":
    sys.exit(main())
