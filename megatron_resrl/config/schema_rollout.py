"""The settings of rollouts: how responses are made, by which servers, and how that is corrected."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from megatron_resrl.config.ranges import POSITIVE_SHARE, above, at_least


@dataclass(frozen=True)
class VllmConfig:
    """vLLM servers that sample responses (`rollout.engine: vllm`)."""

    urls: tuple[str, ...] = ()
    """Servers that are already running, e.g. http://host:8000; empty: the run starts its own. They
    need the flags that the documentation lists, and are neither restarted nor stopped."""
    servers: Annotated[int, at_least(1)] = 1
    """Servers to start on each node."""
    nodes: Annotated[int, at_least(0)] = 0
    """Nodes that only generate, each of which runs `megatron-resrl serve`; 0: the servers run on
    the nodes that train."""
    python: str | None = None
    """Interpreter of the environment that has vLLM; default: the trainer's."""
    tensor_parallel_size: Annotated[int, at_least(1)] = 1
    """GPUs of each server."""
    devices: tuple[str, ...] | None = None
    """CUDA_VISIBLE_DEVICES of each server, e.g. ["0,1", "2,3"]; default: the trainer's GPUs in
    order, `tensor_parallel_size` for each."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables added for the servers."""
    api_key: str | None = field(default=None, repr=False, metadata={"secret": True})
    """Key that servers want with every call; default: the environment variable VLLM_API_KEY, and
    for servers that the run starts a random one. Never written to a file."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `vllm serve`, e.g. {"gpu-memory-utilization": 0.5}."""
    start_timeout_s: Annotated[float, above(0)] = 900.0
    """Seconds within which a server must be ready."""
    request_timeout_s: Annotated[float, above(0)] = 3600.0
    """Seconds within which a response must be complete."""
    stall_timeout_s: Annotated[float, above(0)] = 120.0
    """A server that has requests and makes no token for so many seconds hangs and is restarted."""
    max_retries: Annotated[int, at_least(0)] = 3
    """Times that a response is generated anew because its server failed."""
    max_restarts: Annotated[int, at_least(0)] = 3
    """Restarts of one server in a row without a finished response between them."""
    max_running_requests: Annotated[int, at_least(1)] = 256
    """Responses that one server generates at once (`--max-num-seqs`)."""
    seed_requests: bool | None = None
    """Give every response a seed of its own; default: on GPUs. vLLM on CPU can crash with seeds."""
    weight_transfer: Literal["auto", "nccl", "ipc", "file"] = "auto"
    """vLLM's back end that takes new weights. `nccl`: a broadcast; `ipc`: memory of GPUs that
    trainer and servers share; `file`: safetensors files in `transfer_dir`. `auto`: ipc for
    colocated GPUs, nccl for others, file without GPUs. The trainer needs no vLLM for any."""
    transfer_dir: str = "/dev/shm"
    """Directory that trainer and servers share, for `file`; nodes that train and do not share one
    use their own."""
    bucket_bytes: Annotated[int, at_least(2**20)] = 512 * 2**20
    """Weights sent at once; the memory that a sync needs."""
    weight_transfer_delta: Literal["auto", "always", "never"] = "auto"
    """After the first transfer send only what has changed, bit for bit. `always`: needs
    `weight_transfer: file`. `auto`: with `file`, if the host has memory for it: rank 0 and every
    server keep the bytes of all weights. `never`: all weights at every transfer."""


@dataclass(frozen=True)
class RolloutConfig:
    """How responses are sampled."""

    engine: Literal["megatron", "vllm"] = "megatron"
    """`megatron`: the policy decodes by itself; `vllm`: vLLM servers."""
    placement: Literal["colocated", "disaggregated"] = "colocated"
    """`colocated`: the engine shares the trainer's devices and sleeps while it trains;
    `disaggregated`: it has its own and may generate meanwhile."""
    max_staleness: Annotated[int, at_least(0)] = 0
    """Steps that generation may run ahead of training: a response begins with weights at most so
    many updates old. 0: synchronous; above 0 needs `engine: vllm` and `disaggregated`."""
    verify_weights: bool = False
    """After each transfer of weights compare checksums and greedy continuations with the
    trainer's; a difference ends the run."""
    prompts_per_step: Annotated[int, at_least(1)] = 256
    """Prompts sampled per step (paper: 256)."""
    group_size: Annotated[int, at_least(2)] = 4
    """Responses per prompt, at least 2 (paper: 4)."""
    max_response_length: Annotated[int, at_least(1)] = 4096
    """Largest number of new tokens (paper: 4096)."""
    temperature: Annotated[float, at_least(0)] = 1.0
    """Sampling temperature; 0: greedy (paper: 1.0)."""
    top_p: Annotated[float, POSITIVE_SHARE] = 1.0
    """Keep the smallest set of tokens with this probability mass."""
    top_k: Annotated[int, at_least(0)] = 0
    """Keep the k most likely tokens; 0: all."""
    stop_token_ids: tuple[int, ...] | None = None
    """Tokens that end a response; default: the model's end-of-sequence tokens."""
    max_running_samples: Annotated[int, at_least(1)] = 256
    """Responses decoded at once by one data-parallel replica; bounds the KV cache."""
    dynamic_sampling: bool = False
    """Replace groups whose rewards are all equal by groups of further prompts (DAPO)."""
    max_refills: Annotated[int, at_least(0)] = 4
    """Rounds of replacement per step; after them such groups stay."""
    environment: str | None = None
    """What answers the policy between turns: `calculator`, `python`, `search`, `tools`,
    `gymnasium`, `openenv`, `textworld`, `scienceworld`, `number_game`, or `path.py:name`; None:
    one turn."""
    environment_options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the environment."""
    environment_processes: Annotated[int, at_least(0)] = 0
    """Episodes that one rank plays at once, each with its environment in a process of its own,
    which is ended and replaced where it hangs or crashes; 0: all at once, in threads of the
    trainer."""
    environment_failure: Literal["stop", "zero"] = "stop"
    """An environment that raises, crashes, is late (`reward.timeout_s` for each call) or answers
    nonsense: `stop` ends the run; `zero` ends its episode, with a score of 0."""
    environment_patience_s: Annotated[float, above(0)] = 5.0
    """Seconds that episodes wait for the environments of others before they take their next turn
    without them."""
    max_turns: Annotated[int, at_least(1)] = 8
    """Turns of the policy in one episode; `max_response_length` bounds all of them together."""
    record: str | None = None
    """Directory that keeps the rollouts of every step, for `replay`."""
    replay: str | None = None
    """Directory written by `record`: train on those rollouts, with no engine."""


@dataclass(frozen=True)
class CorrectionConfig:
    """For responses drawn from another distribution than the trainer's: by other numerics, with
    older weights, or from a truncated distribution."""

    method: Literal["none", "token_tis", "sequence_tis", "icepop"] = "none"
    """Factor on the loss from the ratio trainer / engine. `token_tis`, `sequence_tis`: the ratio of
    the token or of the whole response, at most `cap`; `icepop`: the token's ratio, 0 outside of
    `band`."""
    cap: Annotated[float, at_least(1)] = 2.0
    """Largest factor of truncated importance sampling."""
    band: tuple[float, float] = (0.5, 5.0)
    """Ratios that icepop keeps."""
    warn_kl: Annotated[float | None, above(0)] = 0.05
    """Warn when the KL divergence of the engine from the trainer (nats per token) is above; None:
    never."""
    stop_kl: Annotated[float | None, above(0)] = None
    """End the run, before the update, when it is above; None: never."""
