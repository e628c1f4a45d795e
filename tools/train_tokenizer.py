"""Trains a tokenizer on text; see docs/corpus.md.

python tools/train_tokenizer.py --input corpus/*.jsonl --output TOKENIZER \
    --kind sentencepiece --vocab_size 32000
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_resrl.config.function_command import run_function
from megatron_resrl.corpus.train_tokenizer import train_tokenizer


def main() -> int:
    """Runs the command. Returns its exit status."""
    return run_function(train_tokenizer)


if __name__ == "__main__":
    sys.exit(main())
