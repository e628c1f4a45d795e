"""How new weights go to vLLM servers."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from megatron_resrl.config.schema import RolloutConfig, VllmConfig

Backend = Literal["nccl", "ipc", "file"]
_THIS_HOST = ("localhost", "127.0.0.1", "::1")


def transfer_backend(vllm: VllmConfig, placement: str, *, has_cuda: bool) -> tuple[Backend, str]:
    """How weights go to the servers, and the reason. `placement`: `rollout.placement`."""
    setting = vllm.weight_transfer
    if setting != "auto":
        return setting, "as the recipe says"
    if not has_cuda:
        return "file", f"there are no GPUs; through files in {vllm.transfer_dir}"
    if placement == "disaggregated":
        return "nccl", "the servers have GPUs of their own (rollout.placement disaggregated)"
    if all(urlsplit(url).hostname in _THIS_HOST for url in vllm.urls):
        return "ipc", "the servers are on the trainer's GPUs (rollout.placement colocated)"
    return "nccl", "vllm.urls names servers on other hosts"


def transfer_note(vllm: VllmConfig, rollout: RolloutConfig, *, has_cuda: bool) -> str | None:
    """A sentence about the choice, for `check` and the log; None: no weights are sent."""
    if rollout.engine != "vllm" or rollout.replay is not None:
        return None
    backend, why = transfer_backend(vllm, rollout.placement, has_cuda=has_cuda)
    note = f"weights go to the servers by vllm.weight_transfer {backend}: {why}"
    if sends_changes(vllm, backend):
        delta = vllm.weight_transfer_delta
        note += f"; after the first transfer what has changed (vllm.weight_transfer_delta {delta})"
    return note


def sends_changes(vllm: VllmConfig, backend: Backend) -> bool:
    """Whether what has changed is to be sent, by a back end that can."""
    return backend == "file" and vllm.weight_transfer_delta != "never"
