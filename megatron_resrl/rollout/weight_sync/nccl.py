"""Rank 0 of an NCCL group whose other ranks are workers of vLLM, by NCCL's own C functions.

vLLM's `nccl` back end lets a trainer that is no vLLM join by NCCL's unique id: every rank calls
`ncclCommInitRank` at once, sums one float, and then receives broadcasts. Declarations: nccl.h 2.x,
whose functions used here have not changed since 2.0.
"""

from __future__ import annotations

import ctypes
import functools
import os

import torch

from megatron_resrl.errors import RunError

UNIQUE_ID_BYTES = 128
_UINT8, _FLOAT32, _SUM, _INVALID_USAGE = 1, 7, 0, 5
_LIBRARY = "libnccl.so.2"
LIBRARY_VARIABLE = "VLLM_NCCL_SO_PATH"
"""Environment variable with another NCCL library than torch's; vLLM reads it, too."""


class NcclFailure(RunError):
    """An NCCL call failed; the message quotes NCCL."""

    common = True


class UniqueId(ctypes.Structure):
    """`ncclUniqueId`, which is passed by value."""

    _fields_ = [("internal", ctypes.c_byte * UNIQUE_ID_BYTES)]


@functools.cache
def library() -> ctypes.CDLL:
    """The NCCL that torch has loaded, with declared functions.

    Raises:
        NcclFailure: The library cannot be loaded.
    """
    path = os.environ.get(LIBRARY_VARIABLE) or _LIBRARY
    try:
        nccl = ctypes.CDLL(path)
    except OSError as error:
        raise NcclFailure(
            f"vllm.weight_transfer nccl needs the NCCL library {path!r}, which cannot be loaded "
            f"({error}); name it in {LIBRARY_VARIABLE}, or use vllm.weight_transfer file"
        ) from error
    communicator, stream, size = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
    data, number = ctypes.c_void_p, ctypes.c_int
    nccl.ncclGetErrorString.restype = ctypes.c_char_p
    nccl.ncclGetErrorString.argtypes = [number]
    nccl.ncclGetVersion.argtypes = [ctypes.POINTER(number)]
    nccl.ncclGetUniqueId.argtypes = [ctypes.POINTER(UniqueId)]
    nccl.ncclCommInitRank.argtypes = [ctypes.POINTER(communicator), number, UniqueId, number]
    nccl.ncclAllReduce.argtypes = [data, data, size, number, number, communicator, stream]
    nccl.ncclBroadcast.argtypes = [data, data, size, number, number, communicator, stream]
    nccl.ncclCommAbort.argtypes = [communicator]
    return nccl


def new_unique_id() -> bytes:
    """The id by which the ranks of a new group find each other."""
    unique_id = UniqueId()
    _check("ncclGetUniqueId", library().ncclGetUniqueId(ctypes.byref(unique_id)))
    return bytes(unique_id)


def version() -> str:
    """Version of NCCL, e.g. 2.27.5; all ranks of a group need the same version."""
    number = ctypes.c_int()
    _check("ncclGetVersion", library().ncclGetVersion(ctypes.byref(number)))
    return f"{number.value // 10000}.{number.value // 100 % 100}.{number.value % 100}"


class Communicator:
    """Rank 0 of a group, in this process. Calls are asynchronous on a CUDA stream."""

    def __init__(self, unique_id: bytes, world_size: int) -> None:
        """Joins the group; returns when all ranks have joined, and blocks for ever otherwise.

        Args:
            unique_id: Of `new_unique_id`.
            world_size: Ranks of the group.

        Raises:
            NcclFailure: E.g. another rank has another version of NCCL.
        """
        self._communicator = ctypes.c_void_p()
        own = UniqueId.from_buffer_copy(unique_id)
        code = library().ncclCommInitRank(ctypes.byref(self._communicator), world_size, own, 0)
        _check("ncclCommInitRank", code)

    def warm_up(self, one: torch.Tensor, stream: int) -> None:
        """The sum over a single float with which vLLM's workers begin.

        Args:
            one: [1] float32 on the device of the group.
            stream: Handle of a CUDA stream.
        """
        code = library().ncclAllReduce(
            one.data_ptr(), one.data_ptr(), 1, _FLOAT32, _SUM, self._communicator, stream
        )
        _check("ncclAllReduce", code)

    def broadcast(self, content: torch.Tensor, stream: int) -> None:
        """Sends bytes to all other ranks; `content` must stay alive until the stream has sent it.

        Args:
            content: [n] uint8, contiguous, on the device of the group.
            stream: Handle of a CUDA stream.
        """
        code = library().ncclBroadcast(
            content.data_ptr(),
            content.data_ptr(),
            content.numel(),
            _UINT8,
            0,
            self._communicator,
            stream,
        )
        _check("ncclBroadcast", code)

    def abort(self) -> None:
        """Ends the group, pending calls included."""
        if self._communicator:
            code = library().ncclCommAbort(self._communicator)
            self._communicator = ctypes.c_void_p()
            _check("ncclCommAbort", code)


def _check(function: str, code: int) -> None:
    if code:
        said = library().ncclGetErrorString(code).decode(errors="replace")
        if code == _INVALID_USAGE:
            said += (
                "; trainer and vLLM servers need the same version of NCCL, name one library for "
                f"both in {LIBRARY_VARIABLE}"
            )
        raise NcclFailure(f"{function} of NCCL {version()} failed: {said}")
