"""Weights from GPU to GPU: vLLM's back ends `nccl` and `ipc`, sent without vLLM in the trainer.

Neither back end has run on a GPU yet. Tests pass the sent data to the code of vLLM's workers.
"""

from __future__ import annotations

import base64
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist

from megatron_resrl.platform.distributed import broadcast_object, gather_objects
from megatron_resrl.rollout.weight_sync import nccl
from megatron_resrl.rollout.weight_sync.buckets import in_buckets
from megatron_resrl.rollout.weight_sync.control import ServerControl
from megatron_resrl.rollout.weight_sync.device_source import (
    PolicySource,
    SyncClient,
    nccl_introduction,
)
from megatron_resrl.rollout.weight_sync.gpu import Gpu
from megatron_resrl.rollout.weight_sync.packed import (
    as_bytes,
    broadcast_buckets,
    description,
    packed,
)
from megatron_resrl.rollout.weight_sync.receivers import Calls, Receivers, pause
from megatron_resrl.weights.export import TensorFacts

_POLL_S = 0.002
T = TypeVar("T")


class DeviceTransfer(Protocol):
    """Sends all weights to all servers that have not failed."""

    def forget(self, servers: Sequence[ServerControl]) -> None:
        """Forgets the connections to servers that are new or were restarted."""
        ...

    def send(self, servers: Sequence[ServerControl], version: int) -> tuple[int, tuple[str, ...]]:
        """Collective over all ranks.

        Args:
            servers: On global rank 0; none on other ranks.
            version: Of the weights.

        Returns:
            Bytes of the weights, and the urls of servers that failed.
        """
        ...

    def close(self) -> None:
        """Ends connections."""
        ...


class NcclTransfer:
    """One broadcast from global rank 0 to the workers of all servers.

    A new group is made when the set of servers changes. A server that fails before the broadcast
    is left out. NCCL cannot leave out a server that fails while the group is joined or receives:
    the group is aborted, and all servers that wait in it count as failed, too.
    """

    def __init__(
        self, source: PolicySource, gpu: Gpu, bucket_bytes: int, *, timeout_s: float
    ) -> None:
        """
        Args:
            source: The weights.
            gpu: GPU of this rank.
            bucket_bytes: Size above which a packed buffer is sent.
            timeout_s: Seconds in which servers must have joined, or taken a buffer.
        """
        self.bucket_bytes = bucket_bytes
        self.timeout_s = timeout_s
        self._source = source
        self._gpu = gpu
        self._group: nccl.Communicator | None = None
        self._members: set[str] = set()

    def forget(self, servers: Sequence[ServerControl]) -> None:
        """See `DeviceTransfer`."""
        self._members -= {server.url for server in servers}

    def send(self, servers: Sequence[ServerControl], version: int) -> tuple[int, tuple[str, ...]]:
        """See `DeviceTransfer`.

        Raises:
            NcclFailure: On all ranks.
        """
        with Receivers(servers) as receivers:
            client = SyncClient(receivers, version, timeout_s=self.timeout_s)
            receivers.each(pause)
            facts = self._source.metadata()
            while broadcast_object(bool(receivers.alive)):
                self._source.begin_round()
                sent, problem = False, None
                if dist.get_rank() == 0:
                    try:
                        sent = self._connected(client) and self._sent(client, facts)
                    except nccl.NcclFailure as failure:
                        problem = failure
                self._source.finish_pass()
                sent, problem = broadcast_object((sent, problem))
                if problem is not None:
                    raise problem
                if sent:
                    break
            failed = broadcast_object(tuple(receivers.failures))
        return self._source.num_bytes, failed

    def close(self) -> None:
        """See `DeviceTransfer`."""
        group, self._group, self._members = self._group, None, set()
        if group is not None:
            group.abort()

    def _connected(self, client: SyncClient) -> bool:
        """On rank 0: makes a new group if the set of servers has changed.

        Returns:
            Whether all servers have joined; if not, the next attempt leaves out the failed servers.
        """
        alive = {server.url for server in client.receivers.alive}
        if self._group is not None and alive == self._members:
            return True
        if self._members & alive:
            client.release()
        self.close()
        sizes = client.world_sizes()
        if not sizes:
            return False
        unique_id = nccl.new_unique_id()
        joining = _in_thread(partial(self._join, unique_id, 1 + sum(sizes.values())))
        calls = client.introduce(nccl_introduction(unique_id, sizes, self.bucket_bytes))
        try:
            _wait(joining.done, calls, self.timeout_s)
            self._group = joining.result()
        except TimeoutError:
            # NCCL waits for ever for a missing rank; the thread is left to wait.
            client.receivers.drop_unfinished(calls, "was left alone in a group that one failed in")
            return False
        client.receivers.wait(calls)
        self._members = set(sizes)
        return len(client.receivers.alive) == len(sizes)

    def _join(self, unique_id: bytes, world_size: int) -> nccl.Communicator:
        self._gpu.enter_thread()
        group = nccl.Communicator(unique_id, world_size)
        group.warm_up(torch.zeros(1, device=self._gpu.device), self._gpu.stream)
        self._gpu.synchronize()
        return group

    def _sent(self, client: SyncClient, facts: Sequence[TensorFacts]) -> bool:
        """On rank 0: sends one pass. Returns whether the update was closed."""
        assert self._group is not None
        members = len(client.receivers.alive)
        client.start_weight_update()
        if len(client.receivers.alive) < members:
            return False  # The broadcast would wait for the failed server.
        announcement = broadcast_announcement(facts)
        calls = client.receivers.start(lambda server: client.update_one(server, announcement))
        sent = _nothing_to_wait_for
        try:
            for bucket in broadcast_buckets(self._source, self.bucket_bytes):
                # Freed memory is only reused on the same stream, so after the broadcast.
                self._group.broadcast(packed(bucket), self._gpu.stream)
                before, sent = sent, self._gpu.mark()
                _wait(before, calls, self.timeout_s)
            _wait(sent, calls, self.timeout_s)
        except TimeoutError:
            self.close()
            client.receivers.drop_unfinished(calls, "was left alone in a broadcast that failed")
        else:
            client.receivers.wait(calls)
        client.finish_weight_update()
        return True


class IpcTransfer:
    """Sends handles of each rank's CUDA memory to the workers on the same GPUs."""

    def __init__(
        self, source: PolicySource, gpu: Gpu, bucket_bytes: int, *, timeout_s: float
    ) -> None:
        """
        Args:
            source: The weights.
            gpu: GPU of this rank.
            bucket_bytes: Size of the buffer on each GPU, unless a tensor is larger.
            timeout_s: Seconds in which a server must have taken a buffer.
        """
        self.bucket_bytes = bucket_bytes
        self.timeout_s = timeout_s
        self._source = source
        self._gpu = gpu
        self._introduced: set[str] = set()

    def forget(self, servers: Sequence[ServerControl]) -> None:
        """See `DeviceTransfer`."""
        self._introduced -= {server.url for server in servers}

    def close(self) -> None:
        """See `DeviceTransfer`."""

    def send(self, servers: Sequence[ServerControl], version: int) -> tuple[int, tuple[str, ...]]:
        """See `DeviceTransfer`; every rank fills a buffer for the worker on its own GPU."""
        with Receivers(servers) as receivers:
            client = SyncClient(receivers, version, timeout_s=self.timeout_s)
            receivers.each(pause)
            new = [server for server in receivers.alive if server.url not in self._introduced]
            if new:
                receivers.wait(client.introduce({server.url: {"packed": True} for server in new}))
                self._introduced |= {server.url for server in receivers.alive}
            client.start_weight_update()
            self._send_buckets(client)
            client.finish_weight_update()
            failed = broadcast_object(tuple(receivers.failures))
        self._introduced -= set(failed)
        return self._source.num_bytes, failed

    def _send_buckets(self, client: SyncClient) -> None:
        facts = self._source.metadata()
        size = max([self.bucket_bytes, *(fact.num_bytes for fact in facts)])
        buffer = torch.empty(size, dtype=torch.uint8, device=self._gpu.device)
        handles: dict[str, tuple] = {}
        for each in gather_objects({self._gpu.uuid: self._gpu.share(buffer)}):
            handles |= each
        pickled = base64.b64encode(pickle.dumps(handles)).decode()
        self._source.begin_round()
        for bucket in in_buckets(self._source, size):
            fill(buffer, bucket)
            self._gpu.synchronize()
            gather_objects(None)  # All ranks' buffers are filled,
            client.update_weights(description(bucket) | {"ipc_handles_pickled": pickled})
            gather_objects(None)  # and read.
        del buffer
        self._gpu.collect()


def broadcast_announcement(facts: Sequence[TensorFacts]) -> dict[str, list[Any]]:
    """Describes all tensors to receivers of broadcasts, before the first one arrives."""
    return {
        "names": [fact.name for fact in facts],
        "dtype_names": [fact.dtype_name for fact in facts],
        "shapes": [list(fact.shape) for fact in facts],
    }


def fill(buffer: torch.Tensor, bucket: Sequence[tuple[str, torch.Tensor]]) -> None:
    """Copies tensors to the beginning of a buffer [n] uint8, one after the other."""
    place = 0
    for _, tensor in bucket:
        buffer[place : place + tensor.nbytes].copy_(as_bytes(tensor))
        place += tensor.nbytes


def _in_thread(work: Callable[[], T]) -> Future[T]:
    """Runs `work` in a daemon thread."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # `Future.result` raises it again.
            future.set_exception(error)

    threading.Thread(target=run, name="nccl join", daemon=True).start()
    return future


def _nothing_to_wait_for() -> bool:
    return True


def _wait(done: Callable[[], bool], calls: Calls, timeout_s: float) -> None:
    """Polls until a call of NCCL is done; unlike NCCL's own waits, it can be interrupted.

    Args:
        done: Whether the call of NCCL is done.
        calls: Calls to the servers that take part.
        timeout_s: Seconds to wait at most.

    Raises:
        TimeoutError: The time is up, or a server has failed and the call can never end.
    """
    deadline = time.monotonic() + timeout_s
    while not done():
        failed = any(call.done() and call.exception() is not None for _, call in calls)
        if failed or time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(_POLL_S)
