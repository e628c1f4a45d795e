"""The program in a response."""

from __future__ import annotations

import re

_FENCE = re.compile(r"^[ \t]*(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^`\n]*)$", re.MULTILINE)
_PYTHON = ("python", "python3", "py", "py3")


def last_program(response: str) -> str | None:
    """The content of the last fenced code block that is closed.

    Blocks marked as Python count before all others, so that sample output after the program is not
    taken for it.

    Args:
        response: Text with Markdown.

    Returns:
        None: there is no such block, as in a response that was cut off.
    """
    blocks: list[tuple[str, str]] = []
    opened: re.Match[str] | None = None
    for match in _FENCE.finditer(response):
        if opened is None:
            opened = match
        elif match["fence"].startswith(opened["fence"]) and not match["info"].strip():
            content = response[opened.end() + 1 : match.start()]
            blocks.append((opened["info"].strip().partition(" ")[0].lower(), content))
            opened = None
    python = [content for language, content in blocks if language in _PYTHON]
    if python:
        return python[-1]
    return blocks[-1][1] if blocks else None
