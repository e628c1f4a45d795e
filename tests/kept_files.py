"""Reads files of weights as a server does, with the server's own code and without vLLM."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from megatron_resrl.rollout.weight_sync.worker.megatron_resrl_buckets import KeptBuckets


class KeptFiles(KeptBuckets):
    """The buckets that a server keeps, from the files that it is told of."""

    def load(self, path: Path) -> dict[str, torch.Tensor]:
        """What the server would load from a file: copies, by name."""
        with safe_open(path, framework="pt") as file:
            bucket = self.take(file.metadata(), file.get_tensor)
        return {name: tensor.clone() for name, tensor in bucket.tensors()}
