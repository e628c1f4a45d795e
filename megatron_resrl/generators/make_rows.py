"""The program that makes rows: a generator on standard input, a row of JSON on each line out."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from megatron_resrl.generators.exact_json import from_json, to_json
from megatron_resrl.generators.reasoning_gym_tasks import make_task, options_of, source_of


def rows_of(
    address: str, options: str, size: int, seed: int, count: int
) -> Iterator[dict[str, Any]]:
    """The first rows of a generator; arguments but `count` are fields of `Generator`.

    Columns are those of the library (`question`, `answer`, `metadata`), `task_options` and
    `data_source`; of a composite the two are those of the task that was drawn.
    """
    library, _, name = address.partition(":")
    given = from_json(options)
    task = make_task(name, given, seed=seed, size=size)
    for index in range(count):
        # Some tasks draw from these besides their own generators.
        random.seed(seed + index)
        np.random.seed((seed + index) % 2**32)
        entry = task[index]
        source = source_of(name, entry)
        yield {
            "question": entry["question"],
            "answer": entry["answer"],
            "metadata": to_json(entry["metadata"]),
            "task_options": to_json(options_of(name, given, source)),
            "data_source": f"{library}:{source}",
        }


def main() -> None:
    """Reads the request and writes the rows; what the library prints goes to standard error."""
    request = json.loads(sys.stdin.read())
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as out:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        for row in rows_of(**request):
            out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
