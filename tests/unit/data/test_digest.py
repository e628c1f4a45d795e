"""The fingerprint of the questions."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import subprocess
import sys
from typing import Any

import pytest

from megatron_resrl.data.digest import digest
from megatron_resrl.data.prompts import Prompt, PromptRecord

EXTRA = {
    "when": datetime.date(2026, 1, 2),
    "price": decimal.Decimal("1.50"),
    "raw": b"\x00\xff",
    "half": "\ud835",
    "hole": float("nan"),
    "tests": [{"b": 1, "a": None}],
}


def prompts(**changes: Any) -> list[Prompt]:
    record = PromptRecord(0, [{"role": "user", "content": "1+1?"}], "2", "sums", EXTRA)
    ids = changes.pop("token_ids", (3, 4))
    return [Prompt(dataclasses.replace(record, **changes), ids), Prompt(record, (5,))]


@pytest.mark.parametrize(
    "change",
    [
        {"token_ids": (3, 5)},
        {"token_ids": (34,)},
        {"ground_truth": 2},
        {"ground_truth": "3"},
        {"data_source": "other"},
        {"extra": EXTRA | {"price": decimal.Decimal("1.51")}},
        {"extra": EXTRA | {"price": "1.50"}},
        {"extra": EXTRA | {"new": None}},
    ],
)
def test_prompt_digest_shows_any_difference(change: dict[str, Any]) -> None:
    assert digest(prompts(**change)) != digest(prompts())


def test_prompt_digest_shows_order_and_number() -> None:
    one = prompts()
    assert len({digest(one), digest(one[::-1]), digest(one[:1]), digest([*one, *one])}) == 4


def test_prompt_digest_ignores_position_and_column_order() -> None:
    turned = dict(reversed(EXTRA.items()))
    assert digest(prompts(index=7, extra=turned)) == digest(prompts())


def test_prompt_digest_is_the_same_in_every_process() -> None:
    program = "import sys; sys.path.insert(0, sys.argv[1]); import test_digest as t; "
    program += "print(t.digest(t.prompts()))"
    folder = __file__.rpartition("/")[0]
    command = [sys.executable, "-c", program, folder]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert found.strip() == digest(prompts())
