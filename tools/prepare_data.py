"""Makes a question file of a public set; see docs/data.md.

python tools/prepare_data.py dapo_math_17k --output data --against data/aime24.parquet
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_resrl.config.function_command import run_function
from megatron_resrl.preparation.prepare import prepare_data


def main() -> int:
    """Runs the command. Returns its exit status."""
    words = sys.argv[1:]
    if words and not words[0].startswith("-"):
        words = ["--dataset", *words]
    return run_function(prepare_data, words)


if __name__ == "__main__":
    sys.exit(main())
