"""Checks that servers have and use the trainer's weights (`rollout.verify_weights`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from megatron_resrl.errors import RunError
from megatron_resrl.platform.distributed import broadcast_object
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.engine import GenerationRequest, Response, SamplingParams
from megatron_resrl.rollout.engines.megatron import MegatronEngine
from megatron_resrl.rollout.weight_sync.control import ServerControl, ServerFailure
from megatron_resrl.rollout.weight_sync.stream import ServedWeights
from megatron_resrl.rollout.weight_sync.worker.megatron_resrl_checksums import (
    fused_name,
    tensor_sum,
    wrapped,
)

TOLERANCE = {"fp32": 1e-4, "bf16": 0.3}
"""Largest difference of a token's log-prob. fp32: other kernels and another order of sums.
bf16: logits are rounded to 8 bits, by 0.06 at a size of 20; only the checksums are exact.
"""
NEW_TOKENS = 12
PROMPT_LENGTHS = (4, 23, 300)
"""The longest covers whole blocks of the KV cache (128 tokens on CPU), which vLLM reuses."""


@dataclass(frozen=True)
class _ServerSums:
    """Checksums of a server's weights: the answer of `megatron_resrl_checksums`."""

    url: str
    dtype: torch.dtype
    packed: Mapping[str, Sequence[str]]
    sums: Mapping[str, int]


def verify_weights(
    policy: Policy,
    weights: ServedWeights,
    servers: Sequence[ServerControl],
    version: int,
    *,
    max_length: int,
    params_dtype: str,
) -> tuple[str, ...]:
    """Compares checksums and greedy continuations with the trainer's. Collective over all ranks.

    Checksums need a server that is one process; tensor-parallel servers are compared by their
    continuations alone.

    Args:
        policy: Unchanged since the weights were sent.
        weights: The policy's.
        servers: On global rank 0; none on other ranks.
        version: Of the weights.
        max_length: Tokens that a server takes, prompt and response together.
        params_dtype: `precision.params_dtype`, which decides the tolerance.

    Returns:
        Urls of servers that did not answer, on all ranks.

    Raises:
        RunError: On all ranks, if a server differs; the message names the server, the version and
            the first difference.
    """
    failed: list[str] = []
    server_sums: list[_ServerSums] = list(filter(None, _answers(servers, failed, _ask_for_sums)))
    expected = _trainer_sums(weights, server_sums)
    prompts = _prompts(policy, max_length)
    sampling = SamplingParams(NEW_TOKENS, stop_token_ids=(), temperature=0)
    engine = MegatronEngine(policy, max_running_samples=len(prompts))
    own = [group[0] for group in engine.generate(GenerationRequest(prompts, sampling, (0,)))]
    answers: list[str | None] = []
    if dist.get_rank() == 0:
        answers += [
            _sums_differ(one, sums) for one, sums in zip(server_sums, expected, strict=True)
        ]
        left = [server for server in servers if server.url not in failed]
        tolerance = TOLERANCE[params_dtype]
        answers += _answers(
            left, failed, lambda server: _continuations_differ(server, prompts, own, tolerance)
        )
    failed, differences = broadcast_object((failed, [one for one in answers if one is not None]))
    if differences:
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        error = RunError(
            f"rollout.verify_weights: after the weights of version {version} were sent, "
            f"{differences[0]}{more}"
        )
        error.common = True
        raise error
    return tuple(failed)


def _answers(servers: Sequence[ServerControl], failed: list[str], ask: Any) -> list[Any]:
    """Results of `ask` for each server; urls of failing servers are added to `failed`."""
    answers = []
    for server in servers:
        try:
            answers.append(ask(server))
        except ServerFailure:
            failed.append(server.url)
    return answers


def _ask_for_sums(server: ServerControl) -> _ServerSums | None:
    answer = server.post("/collective_rpc", {"method": "megatron_resrl_checksums"})
    worker, *others = answer["results"]
    if others:
        return None
    return _ServerSums(
        server.url, getattr(torch, worker["dtype"]), worker["packed"], worker["sums"]
    )


def _trainer_sums(
    weights: ServedWeights, server_sums: Sequence[_ServerSums]
) -> list[dict[str, int]]:
    """The checksums that each server should have. Collective; empty except on rank 0."""
    expected: list[dict[str, int]] = [{} for _ in server_sums]
    dtypes = {one.dtype for one in server_sums}
    for name, tensor in weights:
        sums = {dtype: tensor_sum(tensor.to(dtype)) for dtype in dtypes}
        for one, total in zip(server_sums, expected, strict=True):
            key = fused_name(name, one.packed)
            total[key] = wrapped(total.get(key, 0) + sums[one.dtype])
    return expected


def _sums_differ(server: _ServerSums, expected: Mapping[str, int]) -> str | None:
    """Describes the first parameter that differs; None: all are equal."""
    for name, total in expected.items():
        if name not in server.sums:
            return f"{server.url} has no parameter {name}"
        if server.sums[name] != total:
            return f"{server.url} holds other values of {name} than the trainer (checksums differ)"
    return None


def _prompts(policy: Policy, max_length: int) -> list[list[int]]:
    """Prompts; the same at each sync, so that a stale cache would show."""
    positions = getattr(policy.hf_config, "max_position_embeddings", None) or max_length
    longest = max(1, min(max_length, positions) - NEW_TOKENS)
    generator = torch.Generator().manual_seed(0)
    vocabulary = policy.hf_config.vocab_size
    lengths = sorted({min(length, longest) for length in PROMPT_LENGTHS})
    return [torch.randint(vocabulary, (n,), generator=generator).tolist() for n in lengths]


def _continuations_differ(
    server: ServerControl,
    prompts: Sequence[Sequence[int]],
    expected: Sequence[Response],
    tolerance: float,
) -> str | None:
    """Describes where a server's greedy continuation leaves the trainer's; None: nowhere."""
    for prompt, response in zip(prompts, expected, strict=True):
        body = {
            "token_ids": list(prompt),
            "sampling_params": {
                "max_tokens": len(response.token_ids),
                "temperature": 0.0,
                "repetition_penalty": 1.0,  # The model's own defaults may have another.
                "ignore_eos": True,
                "logprobs": 2,
                "detokenize": False,
            },
        }
        choice = server.post("/inference/v1/generate", body)["choices"][0]
        found = first_difference(
            choice["logprobs"]["content"], response.token_ids, response.log_probs, tolerance
        )
        if found:
            where = f"after a prompt of {len(prompt)} tokens"
            return f"{server.url} and the trainer differ {where}: {found}"
    return None


def first_difference(
    content: Sequence[Mapping[str, Any]],
    token_ids: Sequence[int],
    log_probs: Sequence[float],
    tolerance: float,
) -> str | None:
    """Compares a server's greedy tokens with the trainer's.

    Where the tokens differ, the server's log-probs of both must agree within the tolerance: a tie.
    Tokens after a tie have another context and are not compared.

    Args:
        content: The server's tokens, each with its log-prob and the log-probs of the two most
            likely tokens.
        token_ids: The trainer's tokens.
        log_probs: Log-probs of the trainer's tokens.
        tolerance: Largest difference of a log-prob.

    Returns:
        The first difference; None: there is none.
    """
    if len(content) != len(token_ids):
        return f"{len(content)} tokens instead of {len(token_ids)}"
    for position, (theirs, token, log_prob) in enumerate(
        zip(content, token_ids, log_probs, strict=True)
    ):
        known = {entry["token_id"]: entry["logprob"] for entry in theirs["top_logprobs"]}
        known[theirs["token_id"]] = theirs["logprob"]
        where = f"token {position} is {theirs['token_id']} with log-prob {theirs['logprob']:.5f}, "
        where += f"the trainer's is {token} with {log_prob:.5f}"
        if token not in known or abs(known[token] - log_prob) > tolerance:
            return where
        if token != theirs["token_id"]:
            return None if theirs["logprob"] - known[token] <= tolerance else where
    return None
