"""Rooms of the package import downwards only, lazy imports included."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "megatron_resrl"

FLOORS = (
    ("errors",),
    ("user_files",),
    ("registry",),
    ("config",),
    ("platform",),
    ("observe",),
    ("algorithms",),
    ("subspace",),
    ("policy.families",),
    ("weights",),
    ("policy",),
    ("sandbox",),
    ("generators",),
    ("data", "rewards"),
    ("checkpoint", "conversion", "corpus", "preparation"),
    ("rollout",),
    ("token_weighting",),
    ("diagnostics",),
    ("evaluation",),
    ("training",),
    ("checks",),
    ("planning",),
    ("doctor", "launch", "status", "comparison"),
    ("cli",),
    ("__main__",),
)
"""From low to high; rooms of one floor do not import each other. A dotted name is a folder whose
files lie lower than the room that it is in."""

FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def imported_modules(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import from this package, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            # What is imported may be a module of its own, or a name of the one it is from.
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)


def room_of(parts: Sequence[str]) -> str | None:
    """The room of a module of the package, given by its name's parts; None: it has no floor."""
    names = (".".join(parts[:2]), parts[0]) if parts else ()
    return next((name for name in names if name in FLOOR_OF), None)


def parts_of(path: Path) -> tuple[str, ...]:
    """Of a file's module below the package."""
    return path.relative_to(PACKAGE).with_suffix("").parts


def upward_imports(source: str, room: str) -> list[str]:
    """Imports of a module that reach another room of the same floor, or a higher one."""
    found = []
    for line, name in imported_modules(ast.parse(source)):
        top, *parts = name.split(".")
        other = room_of(parts) if top == PACKAGE.name else None
        if other not in (None, room) and FLOOR_OF[other] >= FLOOR_OF[room]:
            found.append(f"line {line}: {room} -> {other}")
    return list(dict.fromkeys(found))


# The package itself names its public parts, which are imported when they are first used.
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards(path: Path) -> None:
    room = room_of(parts_of(path))
    assert room is not None, f"give the room of {path} a floor in FLOORS"
    assert not upward_imports(path.read_text(encoding="utf-8"), room)


def test_imports_upwards_are_found_wherever_they_stand() -> None:
    source = (
        "from megatron_resrl.config.schema import Recipe\n"
        "def later():\n"
        "    from megatron_resrl.training import session\n"
        "    import megatron_resrl.rewards.math\n"
        "    from megatron_resrl import cli\n"
    )
    assert upward_imports(source, "data") == [
        "line 3: data -> training",
        "line 4: data -> rewards",
        "line 5: data -> cli",
    ]
    assert not upward_imports(source.splitlines()[0], "data")
    families = "from megatron_resrl.policy.families import find_family"
    assert not upward_imports(families, "weights")
    assert upward_imports(families.replace(".families", ".gpt"), "weights")
