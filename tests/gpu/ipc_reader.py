"""Another process on the same GPU: reads a tensor of bytes through its handle, as vLLM's worker
does. Argument: file with the pickled handle. Prints the SHA-256 of the bytes."""

from __future__ import annotations

import hashlib
import pickle
import sys
from pathlib import Path

from torch.multiprocessing.reductions import rebuild_cuda_tensor

tensor = rebuild_cuda_tensor(*pickle.loads(Path(sys.argv[1]).read_bytes()))
print(hashlib.sha256(tensor.cpu().numpy().tobytes()).hexdigest())
