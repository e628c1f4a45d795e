"""What the throughput of a running stage is measured against."""

from __future__ import annotations

import torch
import torch.distributed as dist

from megatron_resrl.platform.gpu_peaks import peak_of
from megatron_resrl.policy.families import family_of
from megatron_resrl.policy.model_shape import ModelShape
from megatron_resrl.policy.policy import Policy
from megatron_resrl.policy.throughput import Throughput


def throughput_of(policy: Policy, sequence_length: int, peak_tflops: float | None) -> Throughput:
    """Of a policy on the devices of this job.

    Args:
        policy: Whose model is trained.
        sequence_length: Tokens of a sequence. Document masks, with which tokens attend to fewer,
            do not count.
        peak_tflops: Of one device; None: the table's.
    """
    shape = ModelShape.of(family_of(policy.hf_config))
    peak = None if peak_tflops is None else peak_tflops * 1e12
    if peak is None and torch.cuda.is_available():
        peak = peak_of(torch.cuda.get_device_name(), policy.config.params_dtype)
    return Throughput(shape.training_flops(sequence_length), dist.get_world_size(), peak)
