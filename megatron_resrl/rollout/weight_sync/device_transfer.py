"""Weights from GPU to GPU, through vLLM's own trainer-side classes (`nccl`, `ipc`).

The only module of the trainer that imports vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch.distributed as dist
from vllm.distributed.weight_transfer.base import WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from megatron_resrl.platform.distributed import broadcast_object
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.weight_sync.control import ServerControl, ServerFailure
from megatron_resrl.rollout.weight_sync.device_source import (
    PolicySource,
    SyncClient,
    address_towards,
    free_port,
    rank_offsets,
)
from megatron_resrl.rollout.weight_sync.receivers import Receivers, pause


class _Source(PolicySource, WeightSource):
    """`PolicySource` as vLLM's type."""


class DeviceTransfer:
    """Keeps vLLM's trainer engine and makes a new one when the set of servers changes.

    All servers are in one NCCL group. A server that fails before the broadcast is left out; NCCL
    itself cannot leave out one that dies in the middle of it.
    """

    def __init__(
        self,
        policy: Policy,
        backend: Literal["nccl", "ipc"],
        bucket_bytes: int,
        *,
        timeout_s: float,
    ) -> None:
        """
        Args:
            policy: Whose weights are sent.
            backend: vLLM's.
            bucket_bytes: Size of a packed buffer.
            timeout_s: Seconds in which a server must have taken what it is sent.
        """
        self.backend = backend
        self.bucket_bytes = bucket_bytes
        self.timeout_s = timeout_s
        self._source = _Source(policy)
        self._engine: Any = None
        self._connected: set[str] = set()

    def forget(self, servers: Sequence[ServerControl]) -> None:
        """These servers know nothing of an earlier group."""
        self._connected -= {server.url for server in servers}

    def send(self, servers: Sequence[ServerControl], version: int) -> tuple[int, tuple[str, ...]]:
        """Sends all weights to all servers. Collective over all ranks.

        Returns:
            Bytes of the weights, and the urls of servers that failed.
        """
        with Receivers(servers) as receivers:
            nccl = self.backend == "nccl"
            client = SyncClient(receivers, version, all_or_none=nccl, timeout_s=self.timeout_s)
            receivers.each(pause)
            while broadcast_object(bool(receivers.alive)) and not self._sent(client):
                pass
            failed = broadcast_object(tuple(receivers.failures))
        return self._source.num_bytes, failed

    def close(self) -> None:
        """Ends the group."""
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None

    def _sent(self, client: SyncClient) -> bool:
        """One attempt; False: a server failed before the first byte, go on without it."""
        self._connect(client)
        self._source.begin_round()
        self._engine.client = client
        failure = False
        try:
            self._engine.send_weights()
        except ServerFailure:
            failure = True
            self._source.finish_pass()
        return not broadcast_object(failure)

    def _connect(self, client: SyncClient) -> None:
        """Makes a new engine if other servers are there than before. Collective."""
        alive = {server.url for server in client.receivers.alive}
        if not broadcast_object(self._engine is None or alive != self._connected):
            return
        if self._connected & alive:
            client.release()
        self.close()
        self._connected = alive
        self._engine = WeightTransferTrainerFactory.trainer_init(
            self._init_info(client), client=client, source=self._source
        )

    def _init_info(self, client: SyncClient) -> IPCTrainerInitInfo | NCCLTrainerInitInfo:
        rank = dist.get_rank()
        if self.backend == "ipc":
            return IPCTrainerInitInfo(
                rank=rank, packed=True, packed_buffer_size_bytes=self.bucket_bytes
            )
        address, port, size = "", 0, 0
        if rank == 0:
            _, size = rank_offsets(client.world_sizes())
            address = address_towards([server.url for server in client.receivers.alive])
            port = free_port()
        return NCCLTrainerInitInfo(
            rank=rank,
            master_address=address,
            master_port=port,
            world_size=size,
            packed=True,
            packed_buffer_size_bytes=self.bucket_bytes,
        )
