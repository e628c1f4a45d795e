"""Checkpoints as megatron-core 0.19 and later write them, made from those of earlier versions."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

KEY = "common_state/shard_0_1"


def store_common_as_object(folder: Path, **more: Any) -> None:
    """Moves the values of common.pt into a shard file and the index.

    Args:
        folder: Of the checkpoint.
        more: Further values.
    """
    common = torch.load(folder / "common.pt", weights_only=True) | more
    content = io.BytesIO()
    torch.save([common], content)
    shard = folder / "__7_0.distcp"
    shard.write_bytes(content.getvalue())
    index = folder / ".metadata"
    metadata: Metadata = pickle.loads(index.read_bytes())
    metadata.state_dict_metadata[KEY] = BytesStorageMetadata()
    place = _StorageInfo(shard.name, 0, len(content.getvalue()))
    metadata.storage_data[MetadataIndex(KEY)] = place
    index.write_bytes(pickle.dumps(metadata))
    (folder / "common.pt").unlink()
