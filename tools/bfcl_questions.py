"""Writes BFCL's conversations of several turns as a question file, from the package bfcl-eval.

    python tools/bfcl_questions.py --output data/bfcl_multi_turn.jsonl

for `evaluation.suites: [bfcl_multi_turn]` with `rollout.environment: bfcl`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from megatron_resrl.errors import InputError
from megatron_resrl.rollout.environments.bfcl_conversation import CATEGORIES, questions


def main() -> int:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--categories", nargs="+", choices=CATEGORIES, default=CATEGORIES)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    try:
        rows = [row for category in given.categories for row in questions(category)]
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    given.output.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    given.output.write_text(lines, encoding="utf-8")
    print(f"{len(rows)} conversations in {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
