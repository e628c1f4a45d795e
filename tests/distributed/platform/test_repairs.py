"""What megatron-core assumes of optional libraries is mended on machines with CUDA, too."""

from __future__ import annotations

import json
from pathlib import Path

from ranks import run_ranks


def test_repairs_serve_cuda_without_transformer_engine() -> None:
    output = run_ranks(Path(__file__).with_name("ranks_repairs.py"), 1)
    found = json.loads(output.splitlines()[-1])["found"]
    assert found == dict.fromkeys(found, True)
    assert len(found) == 4
