"""Records as lines of JSON for people and programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_LINE_ENDS = str.maketrans({"\u2028": "\\u2028", "\u2029": "\\u2029", "\x85": "\\u0085"})
"""Text may hold them, and some readers of lines end a line there."""


def json_line(record: Mapping[str, Any]) -> str:
    """One line, its end included; letters stay readable."""
    return json.dumps(record, ensure_ascii=False).translate(_LINE_ENDS) + "\n"
