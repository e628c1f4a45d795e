"""The model that a policy is distilled from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from megatron_resrl.config.ranges import above, at_least


@dataclass(frozen=True)
class TeacherConfig:
    """The teacher of `algorithm.name: distillation`: a folder or a server. Its tokenizer is the
    policy's."""

    path: str | None = None
    """Directory of a model of the policy's architecture and sizes, in any format of `model.path`.
    Its weights lie on host memory and take the policy's place for one pass per step."""
    url: str | None = None
    """Address of an OpenAI-compatible server with vLLM's `prompt_logprobs`, such as
    `http://host:8000/v1`; the model may be of any architecture."""
    model: str | None = None
    """Name of the model on that server; null: the only one that it serves."""
    api_key: str | None = field(default=None, repr=False, metadata={"secret": True})
    """Key that the server requires."""
    timeout_s: Annotated[float, above(0)] = 300.0
    """Seconds until a request without an answer has failed."""
    retries: Annotated[int, at_least(0)] = 3
    """Further attempts of a request that failed, after 1, 2, 4, ... seconds; then the run ends."""
