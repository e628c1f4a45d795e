"""The trainer's side of a weight sync, whatever the back end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import psutil
import torch
import torch.distributed as dist

from megatron_resrl.config.schema_rollout import RolloutConfig, VllmConfig
from megatron_resrl.errors import InputError, RunError
from megatron_resrl.platform.distributed import broadcast_object
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.serving.needed_model import NeededModel
from megatron_resrl.rollout.weight_sync.backends import chosen_backend
from megatron_resrl.rollout.weight_sync.buckets import in_buckets
from megatron_resrl.rollout.weight_sync.choice import sends_changes, transfer_note
from megatron_resrl.rollout.weight_sync.control import ServerControl
from megatron_resrl.rollout.weight_sync.device_source import PolicySource
from megatron_resrl.rollout.weight_sync.device_transfer import (
    DeviceTransfer,
    IpcTransfer,
    NcclTransfer,
)
from megatron_resrl.rollout.weight_sync.file_copies import FileCopies, separate_nodes
from megatron_resrl.rollout.weight_sync.file_transfer import FileTransfer, SyncBytes
from megatron_resrl.rollout.weight_sync.gpu import Gpu
from megatron_resrl.rollout.weight_sync.last_sent import LastSent
from megatron_resrl.rollout.weight_sync.receivers import all_hold
from megatron_resrl.rollout.weight_sync.stream import ServedWeights
from megatron_resrl.rollout.weight_sync.verify import verify_weights

logger = logging.getLogger(__name__)

_SHARE_TO_KEEP = 0.5
"""Largest share of the host's free memory that kept bytes may take."""
_COST_OF_A_CHANGE = 3
"""Bytes that are sent for each one that has changed."""


@dataclass(frozen=True)
class SyncReport:
    """What one sync did; the same on all ranks."""

    seconds: float
    """From the first call until the last server resumed; without the verification."""
    num_bytes: int
    """Bytes of the weights that each server has now."""
    sent_bytes: int
    """Bytes that each server got for it."""
    changed_fraction: float | None
    """Share of the weights' bytes that differ from those sent before; None: not compared."""
    failed: tuple[str, ...]
    """Urls of servers that failed; all others have the new weights."""


Verify = Callable[[Sequence[ServerControl], int], tuple[str, ...]]
"""(servers, version of their weights) -> urls of servers that did not answer; collective, raises
`RunError` where a server has other weights."""


class WeightSender:
    """Sends the policy's weights to vLLM servers, in any layout of the trainer.

    A server continues its responses in flight with the new weights.
    """

    def __init__(
        self,
        weights: ServedWeights,
        vllm: VllmConfig,
        rollout: RolloutConfig,
        verify: Verify | None = None,
    ) -> None:
        """
        Args:
            weights: Each call sends the policy's current ones.
            vllm: How weights are sent.
            rollout: Decides, with `vllm`, which back end is used.
            verify: Called after each transfer; None: nothing is verified.

        Raises:
            InputError: `vllm.weight_transfer` cannot be used on this machine.
        """
        self._weights = weights
        self._verify = verify
        backend = chosen_backend(vllm, rollout.placement)
        logger.info("%s", transfer_note(vllm, rollout, has_cuda=torch.cuda.is_available()))
        self._vllm = vllm
        self._files = FileTransfer(
            vllm.transfer_dir,
            vllm.bucket_bytes,
            timeout_s=vllm.stall_timeout_s,
            last_sent=LastSent(weights.other_names, keep=sends_changes(vllm, backend)),
        )
        self._copies: FileCopies | None = None
        # Servers on other nodes are those of the trainers' nodes.
        self._beside_ranks = not vllm.urls and not vllm.nodes
        self._devices: DeviceTransfer | None = None
        if backend != "file":
            transfer = NcclTransfer if backend == "nccl" else IpcTransfer
            source = PolicySource(self._weights)
            self._devices = transfer(
                source, Gpu(), vllm.bucket_bytes, timeout_s=vllm.stall_timeout_s
            )

    def connect(self, servers: Sequence[ServerControl]) -> None:
        """Registers servers that are new or were restarted; the next `send` connects to them.

        Args:
            servers: On global rank 0; none on other ranks.
        """
        if self._devices is not None:
            self._devices.forget(servers)

    def send(self, servers: Sequence[ServerControl], version: int) -> SyncReport:
        """Sends the policy's weights to servers, then verifies them. Collective over all ranks.

        Args:
            servers: The receiving servers on global rank 0; none on other ranks.
            version: Training steps taken; vLLM reports it with responses.

        Returns:
            The report. A failing server is listed in it and raises no error.

        Raises:
            InputError: A setting prevents the transfer, e.g. `vllm.transfer_dir` is full.
            RunError: The verification found a difference.
        """
        began = time.perf_counter()
        if self._devices is not None:
            num_bytes, failed = self._devices.send(servers, version)
            size = SyncBytes(num_bytes, num_bytes)
        else:
            size, failed = self._send_files(servers, version)
        seconds = time.perf_counter() - began
        if self._verify is not None:
            updated = [server for server in servers if server.url not in failed]
            failed += self._verify(updated, version)
        report = SyncReport(seconds, size.weights, size.sent, size.changed_fraction, failed)
        return broadcast_object(report)

    def close(self) -> None:
        """Closes the connections to the servers. Not collective."""
        if self._devices is not None:
            self._devices.close()

    def _send_files(
        self, servers: Sequence[ServerControl], version: int
    ) -> tuple[SyncBytes, tuple[str, ...]]:
        """Rank 0 writes, and others where nodes share no directory with it.

        All ranks iterate the export to its end, even after an error.
        """
        model_bytes = self._weights.num_bytes  # Plans the export at the first sync.
        self._choose_contents(servers, model_bytes)
        weights = self._weights.once()
        result: tuple[SyncBytes, tuple[str, ...]] = (SyncBytes(), ())
        problem: InputError | RunError | None = None
        with self._file_copies() as copies:
            if dist.get_rank() == 0:
                try:
                    result = self._files.send(
                        servers,
                        weights,
                        version,
                        model_bytes=model_bytes,
                        copies=copies,
                    )
                except (InputError, RunError) as error:
                    problem = error
            elif copies.writers:
                for _ in copies.in_step(in_buckets(weights, self._files.bucket_bytes)):
                    pass
            for _ in weights:
                pass
            problem = problem or copies.problem
        result, problem = broadcast_object((result, problem))
        if problem is not None:
            if isinstance(problem, RunError):
                problem.common = True
            raise problem
        self._judge_changes(result[0].changed_fraction)
        return result

    def _choose_contents(self, servers: Sequence[ServerControl], model_bytes: int) -> None:
        """Whether all weights are sent, and whether their bytes are kept. Collective."""
        last_sent, keep, in_full = self._files.last_sent, False, True
        if dist.get_rank() == 0:
            sent = last_sent.identities()
            keep = last_sent.keep and (bool(sent) or self._has_memory(servers, model_bytes))
            in_full = not (keep and all_hold(servers, sent))
        last_sent.keep, self._files.in_full = broadcast_object((keep, in_full))

    def _has_memory(self, servers: Sequence[ServerControl], model_bytes: int) -> bool:
        """Whether this host may keep the bytes of the weights: once here, once in every worker."""
        needed = model_bytes * (1 + len(servers) * self._vllm.tensor_parallel_size)
        available = psutil.virtual_memory().available
        if self._vllm.weight_transfer_delta == "always" or needed <= available * _SHARE_TO_KEEP:
            return True
        logger.warning(
            "vllm.weight_transfer_delta auto: all weights are sent at every transfer, because "
            "keeping those sent last would need %.1f GB of the %.1f GB that are free on this host",
            needed / 1e9,
            available / 1e9,
        )
        return False

    def _judge_changes(self, changed_fraction: float | None) -> None:
        """Gives up comparing weights of which most change, e.g. those in fp32."""
        if changed_fraction is None or self._vllm.weight_transfer_delta != "auto":
            return
        if changed_fraction * _COST_OF_A_CHANGE >= 1:
            self._files.last_sent.give_up()
            logger.info(
                "vllm.weight_transfer_delta auto: from now on all weights are sent, because an "
                "update has changed %.0f %% of their bytes",
                100 * changed_fraction,
            )

    def _file_copies(self) -> FileCopies:
        """Who writes beside rank 0; found out at the first call. Collective."""
        if self._copies is None:
            writers = separate_nodes(self._files.transfer_dir) if self._beside_ranks else ()
            self._copies = FileCopies(self._files, writers)
        return self._copies


def build_sender(
    policy: Policy, model: NeededModel, vllm: VllmConfig, rollout: RolloutConfig
) -> WeightSender:
    """A sender that verifies the servers if `rollout.verify_weights` is set.

    Args:
        policy: Whose weights are sent.
        model: That the servers serve.
        vllm: See `WeightSender`.
        rollout: See `WeightSender`.

    Raises:
        InputError: `vllm.weight_transfer` cannot be used on this machine.
    """
    weights = ServedWeights(policy)
    verify = None
    if rollout.verify_weights:
        verify = partial(
            verify_weights,
            policy,
            weights,
            max_length=model.max_length,
            params_dtype=model.params_dtype,
        )
    return WeightSender(weights, vllm, rollout, verify)
