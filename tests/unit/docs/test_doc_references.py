"""What the pages refer to exists: links, files, functions, tests, settings and commands."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from megatron_resrl.cli import COMMANDS
from megatron_resrl.config.load import load_recipe
from megatron_resrl.config.recipe_schema import schema_of
from megatron_resrl.config.stages import STAGES

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted(
    page
    for folder in (".", "docs", "benchmarks", "examples/*", "tests/data")
    for page in ROOT.glob(f"{folder}/*.md")
)
SECTIONS = [each for kind in STAGES.values() for each in schema_of(kind).sections.items()]
FOLDERS = "megatron_resrl|docs|tests|tools|examples|benchmarks"
NAMES_OLD_SETTINGS = {"migrating.md", "CHANGELOG.md"}
"""Pages that also name settings of earlier versions and of other programs."""
EXAMPLE = ROOT / "examples" / "quickstart" / "recipe.yaml"

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
PATH = re.compile(rf"(?:{FOLDERS})/[\w./*-]*")
DEFINITION = re.compile(r"((?:[\w-]+/)*[\w-]+\.py)(?:::?\s?)([A-Za-z_][\w.]*)")
SETTING = re.compile(rf"((?:{'|'.join(name for name, _ in SECTIONS)})\.[a-z_0-9]+)(?:[:= ].*)?")
FILE_ENDINGS = (".bin", ".json", ".log", ".md", ".png", ".py", ".safetensors", ".yaml")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def code_words(page: Path) -> list[str]:
    """What stands between single backticks outside of code blocks."""
    return CODE.findall(FENCE.sub("", page.read_text()))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@cache
def definitions(file: Path) -> set[str]:
    """Top-level names of a Python file, and `Class.attribute`."""
    found: set[str] = set()

    def add(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                found.add(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    add(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Assign):
                found.update(
                    prefix + each.id for each in node.targets if isinstance(each, ast.Name)
                )
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(prefix + node.target.id)

    add(ast.parse(file.read_text()).body, "")
    return found


def python_file(name: str) -> Path | None:
    """`subspace/basis.py` and `megatron_resrl/subspace/basis.py` are the same file."""
    candidates = (ROOT / name, ROOT / "megatron_resrl" / name)
    return next((each for each in candidates if each.is_file()), None)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_of_pages_lead_to_files_and_headings(page: Path) -> None:
    broken = []
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_in_pages_exist(page: Path) -> None:
    named = {
        path.rstrip(".") for word in code_words(page) for path in PATH.findall(word.split("::")[0])
    }
    assert not {path for path in named if not any(ROOT.glob(path.rstrip("/")))}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_doc_references_to_functions_and_tests_exist(page: Path) -> None:
    missing = []
    for word in code_words(page):
        for name, definition in DEFINITION.findall(word):
            file = python_file(name)
            # A name of the reader's own, such as my_rewards.py:score, has no file here.
            if file is None and "/" not in name:
                continue
            if file is None or definition not in definitions(file):
                missing.append(f"{name}: {definition}")
    assert not missing


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name not in NAMES_OLD_SETTINGS], ids=name_of
)
def test_doc_references_to_settings_are_in_the_schema(page: Path) -> None:
    fields = {
        f"{section}.{field.name}" for section, cls in SECTIONS for field in dataclasses.fields(cls)
    }
    found = filter(None, map(SETTING.fullmatch, code_words(page)))
    named = {each[1] for each in found if not each[1].endswith(FILE_ENDINGS)}
    assert not named - fields


def commands() -> list[tuple[str, str]]:
    """(page, command line) of every `megatron-resrl` command in a code block."""
    found = []
    for page in PAGES:
        for language, block in FENCE.findall(page.read_text()):
            if language not in {"bash", "sh", ""}:
                continue
            for line in block.replace("\\\n", " ").splitlines():
                start = re.search(r"(?:megatron-resrl|-m megatron_resrl) +([a-z]+\b[^&|]*)", line)
                if start and not line.lstrip().startswith("#"):
                    found.append((name_of(page), start[1]))
    return found


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_in_pages_are_understood(page: str, line: str) -> None:
    command, *rest = shlex.split(line, comments=True)
    assert command in COMMANDS, page
    if "--help" in rest:
        return
    recipe = rest.pop(0) if rest and not rest[0].startswith("--") else None
    path = ROOT / recipe if recipe and (ROOT / recipe).is_file() else EXAMPLE
    load_recipe(str(path), COMMANDS[command].settings_of(rest))
