"""The code of docs/adding.md, which tests run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "adding.md"


def example_of_the_page(part: str) -> str:
    """The only Python example that has `part` in it."""
    examples = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (found,) = [example for example in examples if part in example]
    return found
