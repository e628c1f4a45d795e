"""The program in a response."""

from __future__ import annotations

import re

_FENCE = re.compile(
    r"^(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^`\n]*)$", re.MULTILINE
)
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
        language = match["info"].strip().partition(" ")[0].lower()
        if opened is None:
            opened = match
        elif not match["fence"].startswith(opened["fence"]):
            continue  # Part of the program, as a shorter fence in a text is.
        elif not language:
            blocks.append(
                (opened["info"].strip().partition(" ")[0].lower(), _content(opened, match))
            )
            opened = None
        elif language in _PYTHON:  # The block before was never closed.
            opened = match
    python = [content for language, content in blocks if language in _PYTHON]
    if python:
        return python[-1]
    return blocks[-1][1] if blocks else None


def _content(opened: re.Match[str], closed: re.Match[str]) -> str:
    """The lines between two fences, without the indentation of the first."""
    lines = opened.string[opened.end() + 1 : closed.start()].splitlines(keepends=True)
    indent = opened["indent"]
    return "".join(line.removeprefix(indent) for line in lines)
