"""`python -m megatron_resrl`. Spawned worker processes import this file again: hence the guard."""

from megatron_resrl.cli import run

if __name__ == "__main__":
    run()
