"""Writes a Hugging Face model as a Megatron checkpoint; see docs/checkpoints.md.

python tools/convert_hf_to_megatron.py --input MODEL --output MEGATRON \
    --tensor-model-parallel-size 2 --pipeline-model-parallel-size 2
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
    from megatron_resrl.conversion.from_hugging_face import convert_hf_to_megatron

    return run_function(convert_hf_to_megatron)


if __name__ == "__main__":
    sys.exit(main())
