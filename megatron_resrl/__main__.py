"""`python -m megatron_resrl`. Spawned worker processes import this file again: hence the guard."""

import sys

from megatron_resrl.cli import main

if __name__ == "__main__":
    sys.exit(main())
