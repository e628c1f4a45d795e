"""What vLLM's own trainer-side classes ask of a trainer: its weights, and a line to its servers.

Needs no vLLM: the classes are shaped after its `WeightSource` and `VLLMWeightSyncClient`.
"""

from __future__ import annotations

import base64
import pickle
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any
from urllib.parse import urlsplit

import torch

from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.weight_sync.control import ServerControl, ServerFailure
from megatron_resrl.rollout.weight_sync.receivers import (
    Receivers,
    reset_caches_and_resume,
    start_update,
)
from megatron_resrl.rollout.weight_sync.stream import weights_for_vllm


@dataclass(frozen=True)
class ParameterFacts:
    """What vLLM's `ParamMeta` says of a tensor before it comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class PolicySource:
    """The policy's weights, as often as asked for: vLLM's `WeightSource`."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._facts: list[ParameterFacts] | None = None
        self._pass: Iterator[tuple[str, torch.Tensor]] | None = None

    def metadata(self) -> list[ParameterFacts]:
        """All tensors, in the order of iteration. The first call exports once: collective."""
        if self._facts is None:
            self._facts = [
                ParameterFacts(name, tensor.dtype, tuple(tensor.shape))
                for name, tensor in weights_for_vllm(self.policy)
            ]
        return self._facts

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """A new pass. Collective: every rank must go to its end, see `finish_pass`."""
        self._pass = weights_for_vllm(self.policy)
        return self._pass

    def finish_pass(self) -> None:
        """Takes part in what is left of a pass that was broken off, or in all of it."""
        self.metadata()
        for _ in self._pass if self._pass is not None else iter(self):
            pass

    def begin_round(self) -> None:
        """Forgets the pass of the last round."""
        self._pass = None

    @property
    def num_bytes(self) -> int:
        """Of all weights."""
        return sum(torch.Size(one.shape).numel() * one.dtype.itemsize for one in self.metadata())


def rank_offsets(world_sizes: Sequence[int]) -> tuple[list[int], int]:
    """Places of several servers in one group whose rank 0 is the trainer.

    Args:
        world_sizes: Workers of each server.

    Returns:
        First rank of each server, and the size of the group.
    """
    ends = list(accumulate(world_sizes, initial=1))
    return ends[:-1], ends[-1]


class SyncClient:
    """Speaks to all servers at once: vLLM's `VLLMWeightSyncClient`.

    A server that fails is dropped and noted, not raised: an error on the sender alone would leave
    the other ranks waiting in the export.
    """

    def __init__(
        self, receivers: Receivers, version: int, *, all_or_none: bool, timeout_s: float
    ) -> None:
        """
        Args:
            receivers: Paused servers.
            version: Of the weights that are sent.
            all_or_none: The servers take part in one broadcast, which waits for each of them.
            timeout_s: Seconds in which a server must have taken what it is sent.
        """
        self.receivers = receivers
        self.version = version
        self.all_or_none = all_or_none
        self.timeout_s = timeout_s

    def world_sizes(self) -> list[int]:
        """Workers of each server that answers."""
        sizes: dict[str, int] = {}

        def ask(server: ServerControl) -> None:
            sizes[server.url] = server.get("/get_world_size")["world_size"]

        self.receivers.each(ask)
        return [sizes[server.url] for server in self.receivers.alive]

    def release(self) -> None:
        """Ends the connections of an earlier group."""
        self.receivers.each(lambda server: server.post("/shutdown_weight_transfer_engine"))

    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None:
        """Introduces the trainer; with a `rank_offset`, every server gets its own."""
        infos = {server.url: dict(init_info) for server in self.receivers.alive}
        if "rank_offset" in init_info:
            offsets, _ = rank_offsets(self.world_sizes())
            for server, offset in zip(self.receivers.alive, offsets, strict=True):
                infos[server.url]["rank_offset"] = offset
        self._post_each("/init_weight_transfer_engine", lambda url: {"init_info": infos[url]})

    def start_weight_update(self) -> None:
        """Opens the update.

        Raises:
            ServerFailure: A server failed that a broadcast would wait for.
        """
        before = len(self.receivers.alive)
        self.receivers.each(partial(start_update, timeout_s=self.timeout_s))
        if self.all_or_none and len(self.receivers.alive) < before:
            raise ServerFailure("a server failed before the weights were sent")

    def update_weights(self, update_info: Mapping[str, Any]) -> None:
        """Hands over one bucket, or says which weights a broadcast brings."""
        info = without_handles(update_info)
        self._post_each("/update_weights", lambda url: {"update_info": info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Closes the update, resets caches and lets the servers go on."""
        body = {"weight_version": weight_version or str(self.version)}
        self._post_each("/finish_weight_update", lambda url: body)
        self.receivers.each(reset_caches_and_resume)

    def _post_each(self, route: str, body: Callable[[str], Mapping[str, Any] | None]) -> None:
        def post(server: ServerControl) -> None:
            server.post(route, body(server.url), timeout_s=self.timeout_s)

        self.receivers.each(post)


def without_handles(update_info: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces handles of CUDA memory by the pickled form that vLLM takes over HTTP."""
    info = dict(update_info)
    handles = info.pop("ipc_handles", None)
    if handles is not None:
        info["ipc_handles_pickled"] = base64.b64encode(pickle.dumps(handles)).decode()
    return info


def address_towards(urls: Sequence[str]) -> str:
    """This host's address as the servers see it; loopback only if all are on this host."""
    return min(map(_own_address, urls), key=lambda address: address.startswith("127."))


def _own_address(url: str) -> str:
    parts = urlsplit(url)
    # Nothing is sent: the system says which of its addresses it would send from.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((parts.hostname, parts.port or 80))
        return probe.getsockname()[0]


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
