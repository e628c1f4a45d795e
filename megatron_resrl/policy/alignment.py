"""What padded lengths and the sizes of matrices must be multiples of, by layout and FP8 recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass

_PRODUCT = {"delayed": 16, "tensorwise": 16, "blockwise": 16, "mxfp8": 32}
"""FP8 recipe -> what each of the three sizes of a rank's matrix product is a multiple of.

Transformer Engine's `assert_dim_for_fp8_exec` asks for 8 rows and 16 columns; its kernels sum over
the tokens for a weight's gradient, and cuBLAS sums over multiples of 16. The tensors of `mxfp8`
consist of whole blocks of 32.
"""
_BLOCK = 128
"""Of `blockwise`: sequence parallelism gathers whole blocks only (`assert_dim_for_all_gather`)."""


@dataclass(frozen=True)
class Alignment:
    """Multiples that a layout and an FP8 recipe ask for; 1: any number will do."""

    length: int
    """Tokens of a padded sequence, before ranks share it out."""
    hidden: int
    """The model's hidden size."""
    width: int
    """A tensor-parallel rank's share of every other size of a matrix: of heads, of the MLP."""


def alignment(
    *,
    sequence_parallel_size: int = 1,
    context_parallel_size: int = 1,
    fp8_recipe: str | None = None,
) -> Alignment:
    """The one place that knows which lengths and sizes a run can have.

    Packed or not makes no difference: each sequence is padded for itself, so that every sum of
    lengths is a multiple, too.

    Args:
        sequence_parallel_size: Tensor-parallel ranks that share tokens out; 1 without sequence
            parallelism.
        context_parallel_size: Ranks that share sequences out, two pieces each.
        fp8_recipe: Of Transformer Engine; None: no FP8.
    """
    size = 1 if fp8_recipe is None else _PRODUCT[fp8_recipe]
    gathered = fp8_recipe == "blockwise" and sequence_parallel_size > 1
    gathered_size = _BLOCK if gathered else size
    pieces = 2 if context_parallel_size > 1 else 1
    return Alignment(
        length=context_parallel_size * math.lcm(pieces, sequence_parallel_size * gathered_size),
        hidden=gathered_size,
        width=size,
    )
