"""Shared by the two GPU back ends: the policy's weights, and the calls to the servers."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, Protocol

import torch

from megatron_resrl.rollout.weight_sync.control import ServerControl
from megatron_resrl.rollout.weight_sync.receivers import (
    Calls,
    Receivers,
    finish_update,
    start_update,
)
from megatron_resrl.weights.export import TensorFacts


class Weights(Protocol):
    """What `ServedWeights` is for a transfer."""

    @property
    def tensors(self) -> Sequence[TensorFacts]:
        """What an iteration yields, in its order."""
        ...

    @property
    def num_bytes(self) -> int:
        """Size of all tensors."""
        ...

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """A new pass over all tensors; collective, every rank must go to its end."""
        ...


class PolicySource:
    """Weights of which a pass may be broken off on one rank."""

    def __init__(self, weights: Weights) -> None:
        """
        Args:
            weights: Exported anew by each pass.
        """
        self._weights = weights
        self._pass: Iterator[tuple[str, torch.Tensor]] | None = None

    def metadata(self) -> Sequence[TensorFacts]:
        """All tensors, in the order of iteration."""
        return self._weights.tensors

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """A new pass. Collective: every rank must go to its end, see `finish_pass`."""
        self._pass = iter(self._weights)
        return self._pass

    def finish_pass(self) -> None:
        """Iterates an unfinished pass to its end, or a whole pass if none was begun. Collective."""
        for _ in self._pass if self._pass is not None else iter(self):
            pass

    def begin_round(self) -> None:
        """Forgets the pass of the last round."""
        self._pass = None

    @property
    def num_bytes(self) -> int:
        """Size of all weights."""
        return self._weights.num_bytes


def nccl_introduction(
    unique_id: bytes, world_sizes: Mapping[str, int], bucket_bytes: int
) -> dict[str, dict[str, Any]]:
    """The description of an NCCL group, whose rank 0 is the trainer, for each server's workers.

    Args:
        unique_id: Of `nccl.new_unique_id`.
        world_sizes: URL of each server -> number of its workers.
        bucket_bytes: Size of packed buffers; sender and receivers cut the stream independently.

    Returns:
        URL -> `init_info` of vLLM's back end `nccl`.
    """
    common = {
        "nccl_unique_id_b64": base64.b64encode(unique_id).decode(),
        "world_size": 1 + sum(world_sizes.values()),
        "packed": True,
        "packed_buffer_size_bytes": bucket_bytes,
    }
    offsets = accumulate(world_sizes.values(), initial=1)
    return {
        url: common | {"rank_offset": offset}
        for url, offset in zip(world_sizes, offsets, strict=False)
    }


class SyncClient:
    """Runs an update on all servers; a failing server is dropped and noted, without an error.

    An error on rank 0 alone would leave the other ranks waiting in the export.
    """

    def __init__(self, receivers: Receivers, version: int, *, timeout_s: float) -> None:
        """
        Args:
            receivers: Paused servers.
            version: Version of the weights that are sent.
            timeout_s: Seconds that a server may take for each call with weights.
        """
        self.receivers = receivers
        self.version = version
        self.timeout_s = timeout_s

    def world_sizes(self) -> dict[str, int]:
        """URL of each server that answers -> number of its workers."""
        sizes: dict[str, int] = {}

        def ask(server: ServerControl) -> None:
            sizes[server.url] = server.field("GET", "/get_world_size", "world_size")

        self.receivers.each(ask)
        return {server.url: sizes[server.url] for server in self.receivers.alive}

    def release(self) -> None:
        """Closes the servers' connections to an earlier group."""
        self.receivers.each(lambda server: server.post("/shutdown_weight_transfer_engine"))

    def introduce(self, infos: Mapping[str, Mapping[str, Any]]) -> Calls:
        """Starts to send servers their `init_info` (by url): how weights will arrive."""

        def introduce_one(server: ServerControl) -> None:
            if info := infos.get(server.url):
                body = {"init_info": info}
                server.post("/init_weight_transfer_engine", body, timeout_s=self.timeout_s)

        return self.receivers.start(introduce_one)

    def start_weight_update(self) -> None:
        """Opens the update."""
        self.receivers.each(partial(start_update, timeout_s=self.timeout_s))

    def update_weights(self, info: Mapping[str, Any]) -> None:
        """Sends one bucket to all servers."""
        self.receivers.each(lambda server: self.update_one(server, info))

    def update_one(self, server: ServerControl, info: Mapping[str, Any]) -> None:
        """Sends one bucket to a server, or announces the tensors of a broadcast to it.

        Raises:
            ServerFailure: The server refused or did not answer.
        """
        server.post("/update_weights", {"update_info": info}, timeout_s=self.timeout_s)

    def finish_weight_update(self) -> None:
        """Closes the update, resets caches and resumes the servers."""
        self.receivers.each(partial(finish_update, version=self.version, timeout_s=self.timeout_s))
