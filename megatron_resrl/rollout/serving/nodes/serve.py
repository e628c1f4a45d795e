"""A node that only generates: it starts servers for a job whose ranks train on other nodes."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import time
from pathlib import Path

from megatron_resrl.config.serving_store import StoreAddress, store_address
from megatron_resrl.errors import InputError
from megatron_resrl.rollout.serving.launch import API_KEY, ServerPlace, api_key_of, key_is_given
from megatron_resrl.rollout.serving.nodes.agent import NodeAgent
from megatron_resrl.rollout.serving.nodes.board import (
    INTERVAL_S,
    LOST_S,
    TRAINER,
    NodeBoard,
    Pulse,
    Record,
    node_key,
    proof_of,
)
from megatron_resrl.rollout.serving.nodes.fleet import ServerSettings, own_backend
from megatron_resrl.rollout.serving.nodes.place import address_towards, reach_store
from megatron_resrl.rollout.serving.server import StartFailure

logger = logging.getLogger(__name__)


def serve(settings: ServerSettings) -> None:
    """Runs this node's servers until the job ends.

    When the trainers die, the servers are ended, and the node waits for trainers that are started
    again.

    Raises:
        InputError: `MEGATRON_RESRL_STORE` cannot be used, or this node does not fit the run.
        StartFailure: No trainers came within `vllm.start_timeout_s`.
    """
    address = store_address(os.environ)
    # The time limit is near: the trainers end after their step, and tell this node.
    signal.signal(signal.SIGUSR1, lambda *_: logger.info("SIGUSR1: serves until the trainers end"))
    while not _serve_run(settings, address):
        logger.warning("the trainers are gone; waits for others at %s", address)
    logger.info("the job has ended")


def _serve_run(settings: ServerSettings, address: StoreAddress) -> bool:
    """Serves one run of the trainers. Returns whether it has ended in order."""
    node, timeout_s = socket.gethostname(), settings.vllm.start_timeout_s
    logger.info("waits for trainers at %s", address)
    try:
        board = NodeBoard(reach_store(address, timeout_s))
        board.announce(node)
        run = _await_place(board, node, address)
        if run["ended"] or node not in run["nodes"]:
            return run["ended"]
        agent = node_agent(settings, address, board, node, run)
    except RuntimeError as error:
        if isinstance(error, StartFailure):
            raise
        logger.warning("%s", str(error).splitlines()[0])  # The store is gone already.
        return False
    agent.begin()
    try:
        while not agent.ended.wait(INTERVAL_S):
            if max(agent.trainer.silent_s, agent.turns.silent_s) > LOST_S:
                break
    finally:
        agent.close()
    if agent.replaced:
        raise InputError(
            f"another `megatron-resrl serve` has been started on node {node} for the trainers at "
            f"{address}; run one on each node"
        )
    return agent.orderly


def node_agent(
    settings: ServerSettings, address: StoreAddress, board: NodeBoard, node: str, run: Record
) -> NodeAgent:
    """What starts this node's servers.

    Args:
        settings: Of the servers.
        address: Of the store.
        board: Later the agent's own.
        node: Key of this node.
        run: What rank 0 says, with this node's place.

    Raises:
        InputError: This node does not fit the run, which is told so.
    """
    vllm = settings.vllm
    key = api_key_of(vllm) if key_is_given(vllm) else run["key"]
    try:
        if problem := node_problem(run, own_backend(settings), key, vllm.transfer_dir):
            raise InputError(f"node {node} does not fit the trainers at {address}: {problem}")
        specs = settings.specs(key, ServerPlace(address_towards(address.host), run["nodes"][node]))
    except InputError as error:
        refusal = {"agent": secrets.token_hex(8), "beat": 0, "ended": True, "servers": []}
        board.write(node_key(node), refusal | {"refused": str(error)})
        raise
    logger.info("starts servers that listen at %s", specs[0].host)
    return NodeAgent(board, node, specs)


def _await_place(board: NodeBoard, node: str, address: StoreAddress) -> Record:
    """What rank 0 says of its run once this node has its place in it, or the run is over.

    Raises:
        InputError: The store is not of trainers with `vllm.nodes`.
    """
    trainer, run = Pulse(), None
    while trainer.silent_s < LOST_S:
        if (run := board.read(TRAINER)) is not None:
            trainer.see(run["beat"])
            if run["ended"] or node in run["nodes"]:
                return run
        time.sleep(INTERVAL_S)
    if run is None:
        raise InputError(f"what listens at {address} is no trainer with vllm.nodes")
    return run


def node_problem(run: Record, backend: str, key: str | None, transfer_dir: str) -> str | None:
    """Why servers of this node could not work for a run; None: they can.

    Args:
        run: What rank 0 says.
        backend: How this node's servers would take weights.
        key: API key of this node's servers.
        transfer_dir: Setting `vllm.transfer_dir`.
    """
    if backend != run["backend"]:
        return (
            f"its servers would take weights by {backend}, and the trainers send them by "
            f"{run['backend']}; set vllm.weight_transfer"
        )
    if run["proof"] != proof_of(key, run["run"]):
        return f"its API key is another one; let vllm.api_key or {API_KEY} agree"
    if run["marker"] is not None and not (Path(transfer_dir) / run["marker"]).exists():
        return (
            f"vllm.transfer_dir = {transfer_dir!r} is another directory there; give one that the "
            "nodes share"
        )
    return None
