"""Shards encoded in several processes, given back in their order."""

from __future__ import annotations

import collections
import multiprocessing
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy

from megatron_resrl.corpus.encoding import (
    DocumentFormat,
    EncodedShard,
    do_nothing,
    encode_in_worker,
    start_worker,
)
from megatron_resrl.corpus.text_files import Shard
from megatron_resrl.errors import RunError

AHEAD = 2
"""Shards per process that are read ahead."""


def encode_shards(
    shards: Iterator[Shard], tokenizer: Any, form: DocumentFormat, dtype: numpy.dtype, workers: int
) -> Generator[tuple[Shard, EncodedShard], None, None]:
    """Encodes shards in processes; yields them in their order, with few of them in memory."""
    # Forked, so that no process has to import and load the tokenizer again; this one has no
    # threads yet, because nothing has been read or tokenized.
    context = multiprocessing.get_context("fork")
    arguments = (tokenizer, form, dtype)
    with ProcessPoolExecutor(workers, context, start_worker, arguments) as pool:
        try:
            pool.submit(do_nothing).result()
            waiting: collections.deque[tuple[Shard, Future[EncodedShard]]] = collections.deque()
            for shard in shards:
                waiting.append((shard, pool.submit(encode_in_worker, shard)))
                while len(waiting) > AHEAD * workers or (waiting and waiting[0][1].done()):
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        except BrokenProcessPool as error:
            raise RunError(
                "a process that tokenizes was killed, as the system does when memory runs out; "
                "give the same command again to go on, with fewer --workers if memory is short"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
