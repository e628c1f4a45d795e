r"""Writes the examples of an environment of verifiers as a question file.

    python tools/verifiers_questions.py wordle --options '{"num_train_examples": 500}' \
        --output data/wordle.jsonl

for `data.train_files`, with `rollout.environment: verifiers` and the same id and options.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from megatron_resrl.errors import InputError
from megatron_resrl.rollout.environments.verifiers_environment import questions


def main() -> int:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("id", help="of an installed environment")
    parser.add_argument("--options", type=json.loads, default={}, help="JSON, of load_environment")
    parser.add_argument("--split", choices=("train", "eval"), default="train")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    try:
        rows = list(questions(given.id, given.options, given.split))
    except (InputError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    given.output.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    given.output.write_text(lines, encoding="utf-8")
    print(f"{len(rows)} questions in {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
