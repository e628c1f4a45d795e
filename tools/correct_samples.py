"""Writes correct responses of a rollout recording as a file for `megatron-resrl sft`.

python tools/correct_samples.py --recording RECORDING --output correct.jsonl --per_prompt 4
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_resrl.config.function_command import run_function
from megatron_resrl.rollout.correct_samples import write_correct_samples


def main() -> int:
    """Runs the command. Returns its exit status."""
    return run_function(write_correct_samples)


if __name__ == "__main__":
    sys.exit(main())
