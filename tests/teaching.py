"""A teacher of the tiny Qwen3, as a folder and as a server."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny_families as tiny
import torch
from answering import Answer, Request


def write_teacher(policy: Path, folder: Path) -> Path:
    """The policy's model with other weights."""
    model = tiny.read_model(policy)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for each in model.parameters():
            each += 0.05 * torch.randn(each.shape, generator=generator)
    model.save_pretrained(folder)
    return folder


def serving(model: Any, seen: list[Request] | None = None) -> Callable[[Request], Answer]:
    """A server of one model, as vLLM answers; notes what it was asked."""
    lock = threading.Lock()

    def answer(request: Request) -> Answer:
        if seen is not None:
            seen.append(request)
        if request.route == "/v1/models":
            return 200, {"data": [{"id": "large"}]}
        tokens = torch.tensor(request.body["prompt"])
        with lock, torch.no_grad():
            log_probs = model(tokens[None]).logits[0].log_softmax(-1)
        entries: list[Any] = [None]
        for place, token in enumerate(tokens.tolist()[1:]):
            entries.append({str(token): {"logprob": float(log_probs[place, token]), "rank": 1}})
        return 200, {"choices": [{"text": "", "prompt_logprobs": entries}]}

    return answer
