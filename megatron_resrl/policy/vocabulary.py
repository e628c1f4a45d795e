"""A vocabulary split over tensor-parallel ranks: each has some rows of the output matrix.

Shapes: n tokens, H hidden size, V padded vocabulary, TP ranks it is split over, C columns of a
chunk of logits.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class VocabularyShard:
    """The rows of the output matrix that this rank has."""

    def __init__(
        self,
        weight: Tensor,
        vocab_size: int,
        temperature: float,
        group: dist.ProcessGroup | None,
    ) -> None:
        """
        Args:
            weight: [V / TP, H], this rank's rows.
            vocab_size: Real size of the vocabulary; rows beyond it are padding and get no mass.
            temperature: Divides the logits.
            group: Tensor-parallel group; None: the vocabulary is whole.
        """
        self.weight = weight
        self.temperature = temperature
        self.group = group
        self.rows = weight.shape[0]
        self.first = self.rows * (dist.get_rank(group) if group is not None else 0)
        self.valid = min(self.rows, max(0, vocab_size - self.first))

    def logits(self, hidden_nH: Tensor, rows: slice = slice(None)) -> Tensor:
        """[n, C] logits of chosen rows in `logits_dtype`, -inf for padding rows."""
        start, stop, _ = rows.indices(self.rows)
        logits_nC = (hidden_nH @ self.weight[start:stop].T).to(self.logits_dtype)
        if self.temperature != 1.0:
            logits_nC /= self.temperature
        logits_nC[:, max(0, self.valid - start) :] = float("-inf")
        return logits_nC

    @property
    def logits_dtype(self) -> torch.dtype:
        """float32, or float64 for float64 weights."""
        return torch.float64 if self.weight.dtype == torch.float64 else torch.float32

    def select(self, logits: Tensor, targets: Tensor) -> Tensor:
        """[n] the targets' entries of [n, V / TP] where this rank has them, else 0."""
        local, own = self._own(targets)
        return logits.gather(1, local[:, None])[:, 0].masked_fill(~own, 0.0)

    def add_to_selected(self, tensor: Tensor, targets: Tensor, value: float = 1.0) -> None:
        """Adds a value to the targets' columns of [n, V / TP] that this rank has."""
        local, own = self._own(targets)
        values = own[:, None].to(tensor.dtype)
        tensor.scatter_add_(1, local[:, None], values if value == 1.0 else values.mul_(value))

    def reduce(self, tensor: Tensor, operation: Any) -> Tensor:
        """Over the ranks of the vocabulary. Collective."""
        if self.group is not None and dist.get_world_size(self.group) > 1:
            tensor = tensor.contiguous()
            dist.all_reduce(tensor, op=operation, group=self.group)
        return tensor

    def _own(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        local = targets - self.first
        own = (local >= 0) & (local < self.rows)
        return local.clamp(0, self.rows - 1), own
