"""One half of `test_checkpoint_reshard.py`, with whatever megatron-core comes first on the path.

Arguments: write|read, folder of the models, working folder. Prints megatron-core's version, and
what `ranks_checkpoint_reshard.py` prints on one rank and on two.
"""

from __future__ import annotations

import sys
from importlib import metadata

from ranks import REPOSITORY, run_ranks

SCRIPT = REPOSITORY / "tests/distributed/checkpoint/ranks_checkpoint_reshard.py"

if __name__ == "__main__":
    print(metadata.version("megatron-core"))
    for world in (1, 2):
        print(run_ranks(SCRIPT, world, *sys.argv[1:]))
