"""How fast a stage trains: tokens, model operations, and their share of the device's peak."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron_resrl.platform.gpu_peaks import peak_of
from megatron_resrl.policy.families import family_of
from megatron_resrl.policy.model_shape import ModelShape
from megatron_resrl.policy.policy import Policy


@dataclass(frozen=True)
class Throughput:
    """What the rates of a step are made of."""

    flops_per_token: float
    """Model operations of training on one token, see `ModelShape.training_flops`."""
    ranks: int
    peak: float | None
    """FLOP/s of one device; None: not known."""

    @classmethod
    def of(cls, policy: Policy, sequence_length: int, peak_tflops: float | None) -> Throughput:
        """Of a policy on the devices of this job.

        Args:
            policy: Whose model is trained.
            sequence_length: Tokens of a sequence. Document masks, with which tokens attend to
                fewer, do not count.
            peak_tflops: Of one device; None: the table's.
        """
        shape = ModelShape.of(family_of(policy.hf_config))
        peak = None if peak_tflops is None else peak_tflops * 1e12
        if peak is None and torch.cuda.is_available():
            peak = peak_of(torch.cuda.get_device_name(), policy.config.params_dtype)
        return cls(shape.training_flops(sequence_length), dist.get_world_size(), peak)

    def rates(self, tokens: float, seconds: float) -> dict[str, float]:
        """Metrics of a step.

        `tokens_per_second` of all ranks together; `model_tflops_per_gpu` = tokens per second x
        `flops_per_token` / ranks / 10^12; `mfu`, the model's share of the peak =
        `model_tflops_per_gpu` / peak, where the peak is known.

        Args:
            tokens: Of all replicas.
            seconds: Of the step.
        """
        per_second = tokens / seconds
        tflops = per_second * self.flops_per_token / self.ranks / 1e12
        rates = {"tokens_per_second": per_second, "model_tflops_per_gpu": tflops}
        if self.peak is not None:
            rates["mfu"] = tflops * 1e12 / self.peak
        return rates

    def of_step(self, metrics: Mapping[str, float], sequence_length: int) -> dict[str, float]:
        """`rates` from a step's `batch_size` and `time/step`; nothing if no time has passed."""
        seconds = metrics["time/step"]
        return self.rates(metrics["batch_size"] * sequence_length, seconds) if seconds else {}
