"""What a dry run stands for: a GPU, and the layers that are installed where it is."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_resrl.planning.gpus import GPUS, Gpu
from megatron_resrl.planning.layers import Layers


@dataclass(frozen=True)
class Machine:
    """Of every rank."""

    layers: Layers = "local"
    gpu: Gpu = GPUS["h100"]
    """Its memory and compute capability, which code asks for."""
