"""Program that dry-runs ranks on Transformer Engine's layers; `dry_run` starts it.

Arguments: a file with the pickled arguments of `run_ranks`; a file for its pickled result, or for
the exception that it raised.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

from megatron_resrl.planning.dry_run import run_ranks


def main(given: str, found: str) -> None:
    """See the module."""
    result: Any
    try:
        result = run_ranks(*pickle.loads(Path(given).read_bytes()))
    except Exception as error:
        result = error
    Path(found).write_bytes(pickle.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
