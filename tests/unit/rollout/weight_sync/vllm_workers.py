"""Takes messages and bytes as vLLM's workers do, with vLLM's own code and no GPU.

Arguments: the folder `vllm/distributed/weight_transfer` to take code from, a file of `torch.save`
with what was sent, and one for what was understood. Everything of vLLM but that folder is a mock.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import importlib.machinery
import sys
import types
from unittest import mock

import torch

PACKAGE = "vllm.distributed.weight_transfer"


class Mocks:
    """Finds a mock for every module of vLLM that is not in the folder."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != "vllm":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        module = mock.MagicMock(NCCL_UNIQUE_ID_BYTES=128)
        module.__path__, module.__spec__, module.__name__ = [], spec, spec.name
        return module

    def exec_module(self, module):
        pass


def load(folder: str) -> tuple:
    """Modules `packed_tensor`, `nccl_engine` and `ipc_engine` of a version of vLLM."""
    package = types.ModuleType(PACKAGE)
    package.__path__ = [folder]
    sys.modules[PACKAGE] = package
    sys.modules.setdefault("pybase64", base64)
    sys.meta_path.append(Mocks())
    names = ("packed_tensor", "nccl_engine", "ipc_engine")
    return tuple(importlib.import_module(f"{PACKAGE}.{name}") for name in names)


class Group:
    """Hands out the bytes that were broadcast, which must be as long as what waits for them."""

    def __init__(self, contents: list[torch.Tensor]) -> None:
        self.contents = list(contents)

    def broadcast(self, tensor: torch.Tensor, src: int) -> None:
        assert src == 0
        tensor.copy_(self.contents.pop(0))


def by_nccl(packed_tensor, nccl_engine, sent: dict) -> dict:
    engine = object.__new__(nccl_engine.NCCLWeightTransferEngine)
    infos = {url: engine.parse_init_info(info) for url, info in sent["init_infos"].items()}
    (info, *_) = infos.values()
    update = engine.parse_update_info(sent["update_info"])
    columns = zip(update.names, update.dtype_names, update.shapes, strict=True)
    told = [(name, (shape, getattr(torch, dtype))) for name, dtype, shape in columns]
    got: list[tuple[str, torch.Tensor]] = []
    group = Group(sent["contents"])
    streams = (mock.MagicMock(),) * info.packed_num_buffers
    nowhere = mock.patch.multiple(
        torch.cuda, stream=mock.Mock(return_value=contextlib.nullcontext())
    )
    with (
        nowhere,
        mock.patch.object(packed_tensor, "_get_streams", return_value=streams),
        mock.patch.object(torch.accelerator, "current_device_index", return_value=0),
        mock.patch.object(torch.accelerator, "current_stream"),
        mock.patch.object(torch, "Event"),
        mock.patch.object(torch.Tensor, "record_stream"),
    ):
        packed_tensor.packed_nccl_broadcast_consumer(
            iterator=iter(told),
            group=group,
            src=0,
            post_unpack_func=lambda tensors: got.extend((n, t.clone()) for n, t in tensors),
            buffer_size_bytes=info.packed_buffer_size_bytes,
            num_buffers=info.packed_num_buffers,
            device="cpu",
        )
    assert info.packed
    assert not group.contents
    return {
        "ids": [info.nccl_unique_id_bytes for info in infos.values()],
        "places": [(info.rank_offset, info.world_size) for info in infos.values()],
        "weights": got,
    }


def by_ipc(packed_tensor, ipc_engine, sent: dict) -> dict:
    engine = object.__new__(ipc_engine.IPCWeightTransferEngine)
    assert engine.parse_init_info(sent["init_info"]).packed
    gpu = mock.Mock(uuid=sent["gpu"])
    got = []
    with mock.patch.object(torch.cuda, "get_device_properties", return_value=gpu):
        for info, buffer in zip(sent["update_infos"], sent["buffers"], strict=True):
            update = engine.parse_update_info(info)
            got += packed_tensor.packed_ipc_consumer(
                ipc_handle=update.ipc_handles,
                names=update.names,
                shapes=update.shapes,
                dtype_names=update.dtype_names,
                tensor_sizes=update.tensor_sizes,
                device_index=0,
                importer=mock.Mock(rebuild=mock.Mock(return_value=buffer)),
            )
    return {"weights": got}


def main() -> None:
    packed_tensor, nccl_engine, ipc_engine = load(sys.argv[1])
    sent = torch.load(sys.argv[2], weights_only=False)
    understood = {
        "nccl": by_nccl(packed_tensor, nccl_engine, sent["nccl"]),
        "ipc": by_ipc(packed_tensor, ipc_engine, sent["ipc"]),
    }
    torch.save(understood, sys.argv[3])


if __name__ == "__main__":
    main()
