"""The error that explains itself to a user."""

from __future__ import annotations

import difflib
from collections.abc import Collection


class InputError(ValueError):
    """Something the user gave cannot be used; the message explains it without a traceback.

    It names the setting or file, the value found and what would be right.
    """


def closest(name: str, candidates: Collection[str], cutoff: float = 0.6) -> str | None:
    """The candidate that looks most like `name`, or None if none is similar enough."""
    found = difflib.get_close_matches(name, candidates, n=1, cutoff=cutoff)
    return found[0] if found else None
