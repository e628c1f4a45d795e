"""All servers of a job: those that rank 0's node starts itself, and those of other nodes."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_resrl.config.schema_rollout import VllmConfig
from megatron_resrl.config.serving_store import StoreAddress, store_address
from megatron_resrl.platform.distributed import (
    broadcast_object,
    job_store,
    run_on_every_rank,
    run_on_rank_zero,
)
from megatron_resrl.platform.launch import expand_hosts
from megatron_resrl.rollout.serving.launch import (
    ServerPlace,
    api_key_of,
    key_is_given,
    server_specs,
    visible_gpus,
)
from megatron_resrl.rollout.serving.needed_model import NeededModel
from megatron_resrl.rollout.serving.nodes.agent import NodeAgent
from megatron_resrl.rollout.serving.nodes.board import NodeBoard, proof_of
from megatron_resrl.rollout.serving.nodes.directory import Node, NodeDirectory, RemoteSpec
from megatron_resrl.rollout.serving.nodes.place import (
    address_towards,
    host_of_rank_zero,
    open_store,
    trainer_nodes,
)
from megatron_resrl.rollout.serving.pooled_server import PooledServer
from megatron_resrl.rollout.serving.server import ServerSpec
from megatron_resrl.rollout.weight_sync.choice import Backend, transfer_backend
from megatron_resrl.rollout.weight_sync.file_copies import seen_file

logger = logging.getLogger(__name__)

_SHOWN_NODES = 8
"""Missing nodes that a message names."""


@dataclass(frozen=True)
class ServerSettings:
    """What a node's servers are started with, but for the node itself."""

    model: NeededModel
    vllm: VllmConfig
    output_dir: Path
    colocated: bool
    weight_flags: tuple[Sequence[str], Mapping[str, str]]

    def specs(self, api_key: str | None, place: ServerPlace) -> list[ServerSpec]:
        """The servers of this node.

        Raises:
            InputError: The node has too few GPUs.
        """
        cuda = torch.cuda.is_available()
        return server_specs(
            self.model,
            self.vllm,
            output_dir=self.output_dir,
            colocated=self.colocated,
            cuda=cuda,
            weight_flags=self.weight_flags,
            api_key=api_key,
            gpus=visible_gpus() if cuda else None,
            place=place,
        )


@dataclass
class Fleet:
    """The servers of a job, as one rank has them."""

    servers: list[PooledServer] = field(default_factory=list)
    """All servers on rank 0; empty on other ranks."""
    directory: NodeDirectory | None = None
    """On rank 0, if other nodes start servers."""
    agent: NodeAgent | None = None
    """On the first ranks of other nodes that train, if they start servers."""
    _stack: ExitStack = field(default_factory=ExitStack)
    """What ends with the job."""

    def begin(self) -> None:
        """Starts to listen for orders, or to the nodes."""
        if self.directory is not None:
            self.directory.begin()
        if self.agent is not None:
            self.agent.begin()

    def close(self) -> None:
        """Ends the servers that this rank's node and nodes for rollouts have started."""
        if self.directory is not None:
            self.directory.close()
        if self.agent is not None:
            self.agent.close()
        self._stack.close()


def assemble(settings: ServerSettings) -> Fleet:
    """The servers that a recipe asks for, not started yet. Collective.

    Raises:
        InputError: On all ranks: a node has too few GPUs, or the store cannot be opened.
    """
    vllm = settings.vllm
    key = broadcast_object(api_key_of(vllm))
    if vllm.urls:
        urls = [url.rstrip("/") for url in vllm.urls] if dist.get_rank() == 0 else []
        return Fleet([PooledServer(None, url=url, api_key=key) for url in urls])
    if vllm.nodes:
        return _of_other_nodes(settings, key)
    return _of_trainer_nodes(settings, key)


def _of_trainer_nodes(settings: ServerSettings, key: str | None) -> Fleet:
    """Every node that trains starts its servers; rank 0's node does so without the store."""
    nodes = trainer_nodes()
    own = nodes.own

    def own_specs() -> list[ServerSpec]:
        if own is None:
            return []
        place = ServerPlace(number=own)
        if own > 0:
            place = ServerPlace(address_towards(host_of_rank_zero()), own)
        return settings.specs(key, place)

    specs = run_on_every_rank(own_specs)
    if len(nodes.ranks) == 1:
        return Fleet([PooledServer(spec, api_key=key) for spec in specs])
    engine = broadcast_object(secrets.token_hex(8))
    if own is None:
        return Fleet()
    board = NodeBoard(job_store(), engine)
    if own > 0:
        return Fleet(agent=NodeAgent(board, str(nodes.ranks[own]), specs))
    directory = NodeDirectory(
        board,
        [Node(str(rank), host) for rank, host in zip(nodes.ranks, nodes.hosts, strict=True)],
        {},
        lambda others: (
            "no server starts on "
            + _listed([node.label for node in others[1:] if not node.lives])
            + ": the first rank there gives no sign of life"
        ),
    )
    servers = [PooledServer(spec, api_key=key) for spec in specs]
    for number, rank in enumerate(nodes.ranks[1:], start=1):
        servers += _remote(directory, number, settings.vllm.servers, key, rank_beside=rank)
    return Fleet(servers, directory)


def _of_other_nodes(settings: ServerSettings, key: str | None) -> Fleet:
    """Nodes that train no rank start all servers, see `serve`."""
    fleet, hosts = Fleet(), trainer_nodes().hosts

    def open_directory() -> None:
        address = store_address(os.environ)
        vllm, count = settings.vllm, settings.vllm.nodes
        facts = _facts(settings, key, fleet._stack)
        fleet.directory = NodeDirectory(
            NodeBoard(open_store(address)),
            [Node(None, f"node {number + 1} of {count} for rollouts") for number in range(count)],
            facts,
            lambda nodes: missing_nodes(
                nodes, absent_hosts(os.environ, hosts, nodes), address, vllm.start_timeout_s
            ),
        )
        for number in range(count):
            fleet.servers += _remote(fleet.directory, number, vllm.servers, key)

    run_on_rank_zero(open_directory)
    return fleet


def _facts(settings: ServerSettings, key: str | None, stack: ExitStack) -> dict[str, Any]:
    """What a node for rollouts must know of the run; see `node_problem`."""
    vllm, run, marker = settings.vllm, secrets.token_hex(8), None
    backend = own_backend(settings)
    if backend == "file":
        marker = f"megatron-resrl-run-{run}"
        stack.enter_context(seen_file(Path(vllm.transfer_dir) / marker))
    return {
        "run": run,
        "backend": backend,
        "marker": marker,
        "proof": proof_of(key, run),
        # A key that was given is not told: the node has been given it, too.
        "key": None if key_is_given(vllm) else key,
    }


def own_backend(settings: ServerSettings) -> Backend:
    """How servers of this machine take weights."""
    placement = "colocated" if settings.colocated else "disaggregated"
    return transfer_backend(settings.vllm, placement, has_cuda=torch.cuda.is_available())[0]


def _remote(
    directory: NodeDirectory, node: int, servers: int, key: str | None, *, rank_beside: int = 0
) -> list[PooledServer]:
    """The servers of another node."""
    specs = (RemoteSpec(directory, node, n, node * servers + n) for n in range(servers))
    return [PooledServer(spec, api_key=key, rank_beside=rank_beside) for spec in specs]


def missing_nodes(
    nodes: Sequence[Node], absent: Sequence[str], address: StoreAddress, timeout_s: float
) -> str:
    """Says which nodes for rollouts are not there.

    Args:
        nodes: All that the job takes.
        absent: Hosts that should be among them and have not come, as far as they are known.
        address: Where they announce themselves.
        timeout_s: Setting `vllm.start_timeout_s`.
    """
    there = [node.label for node in nodes if node.lives]
    gone = [node.label for node in nodes if node.key is not None and not node.lives]
    parts = [f"vllm.nodes = {len(nodes)}: {len(there)} of {len(nodes)} nodes are there"]
    parts[0] += f" ({_listed(there)})" if there else ""
    if gone:
        parts.append(f"{_listed(gone)} did not come back within vllm.start_timeout_s")
    if len(there) + len(gone) < len(nodes):
        who = _listed(absent) or "the others"
        parts.append(f"{who} did not come to {address} within vllm.start_timeout_s")
    parts[-1] += f" = {timeout_s:g} s"
    return "; ".join([*parts, "start `megatron-resrl serve` with this recipe there"])


def absent_hosts(
    environment: Mapping[str, str], trainers: Sequence[str], nodes: Sequence[Node]
) -> list[str]:
    """Hosts of the Slurm job on which neither ranks nor servers have announced themselves."""
    try:
        hosts = expand_hosts(environment.get("SLURM_JOB_NODELIST", ""))
    except ValueError:
        return []
    known = {_short(host) for host in trainers} | {_short(node.label) for node in nodes}
    return [host for host in hosts if _short(host) not in known]


def _short(host: str) -> str:
    return host.partition(".")[0]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN_NODES} more" if len(names) > _SHOWN_NODES else ""
    return ", ".join(names[:_SHOWN_NODES]) + more
