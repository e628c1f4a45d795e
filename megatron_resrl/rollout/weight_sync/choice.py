"""How new weights go to vLLM servers."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from megatron_resrl.config.schema import Recipe

Backend = Literal["nccl", "ipc", "file"]
_THIS_HOST = ("localhost", "127.0.0.1", "::1")


def transfer_backend(recipe: Recipe, *, has_cuda: bool) -> tuple[Backend, str]:
    """How weights go to the servers, and why so."""
    setting = recipe.vllm.weight_transfer
    if setting != "auto":
        return setting, "as the recipe says"
    if not has_cuda:
        directory = recipe.vllm.transfer_dir
        return "file", f"there are no GPUs; through {directory} of a host that all servers share"
    if recipe.rollout.placement == "disaggregated":
        return "nccl", "the servers have GPUs of their own (rollout.placement disaggregated)"
    if all(urlsplit(url).hostname in _THIS_HOST for url in recipe.vllm.urls):
        return "ipc", "the servers are on the trainer's GPUs (rollout.placement colocated)"
    return "nccl", "vllm.urls names servers on other hosts"


def transfer_note(recipe: Recipe, *, has_cuda: bool) -> str | None:
    """What `check` says of the choice; None where nothing is sent."""
    if recipe.rollout.engine != "vllm" or recipe.rollout.replay is not None:
        return None
    backend, why = transfer_backend(recipe, has_cuda=has_cuda)
    return f"weights go to the servers by vllm.weight_transfer {backend}: {why}"
