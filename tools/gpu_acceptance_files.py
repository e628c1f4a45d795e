"""What the acceptance test carries to a machine that has torch and transformers and no network."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

CARRIED = (
    *("megatron-core", "mbridge", "einops", "psutil", "pyarrow", "pebble"),
    *("jsonargparse", "docstring-parser", "typeshed-client"),
    *("math-verify", "latex2sympy2_extended", "antlr4-python3-runtime"),
    "hypothesis",
)
"""Distributions in the versions of constraints.txt."""
THEIR_NEEDS = ("importlib_resources", "sortedcontainers")
"""Distributions that those import, and that constraints.txt leaves open."""
LEFT_OUT = re.compile(r"pyarrow/((tests|includes?|src)/|.*flight|.*\.(pyx|pxi|pxd)$)")
"""Of pyarrow, half of its size."""
SITE, ENGINE = "site.tar.xz", "engine.tar.xz"
LARGEST_BYTES = 64 * 2**20


class CannotPack(Exception):
    """What is wrong, in a sentence."""


def pack(folder: Path, engine: Path | None, constraints: Path, python: str = "3.12") -> str:
    """Collects Python packages for another machine.

    Args:
        folder: Made if absent.
        engine: A .tar.xz of built Transformer Engine; None: the other machine has it, or goes
            without.
        constraints: File of pinned versions.
        python: Version of the other machine's Python.

    Returns:
        What was collected, in a line.

    Raises:
        CannotPack: A package cannot be fetched, or the whole is too large.
    """
    if engine is not None and not engine.is_file():
        raise CannotPack(f"--engine {engine}: there is no such file")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        wheels, site = Path(temporary) / "wheels", Path(temporary) / "site"
        _download(wheels, [*pinned(CARRIED, constraints.read_text()), *THEIR_NEEDS], python)
        unpack_wheels(wheels.glob("*.whl"), site)
        with tarfile.open(folder / SITE, "w:xz") as archive:
            archive.add(site, ".")
    if engine is not None:
        shutil.copyfile(engine, folder / ENGINE)
    sizes = {file.name: file.stat().st_size for file in sorted(folder.glob("*.tar.xz"))}
    if sum(sizes.values()) > LARGEST_BYTES:
        raise CannotPack(f"{folder} holds more than {LARGEST_BYTES >> 20} MiB: {sizes}")
    parts = ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in sizes.items())
    return f"{folder}: {parts}; on the other machine: tools/gpu_acceptance.sh --from {folder}"


def pinned(names: Iterable[str], constraints: str) -> list[str]:
    """Requirements with the versions of a constraints file.

    Raises:
        CannotPack: The file has no version of one of them.
    """
    versions = dict(re.findall(r"^([\w.-]+)==(\S+)$", constraints, re.MULTILINE))
    missing = [name for name in names if name not in versions]
    if missing:
        raise CannotPack(f"constraints.txt has no version of {', '.join(missing)}")
    return [f"{name}=={versions[name]}" for name in names]


def _download(folder: Path, requirements: list[str], python: str) -> None:
    platforms = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", python, "--dest", str(folder)]
    command += [part for name in platforms for part in ("--platform", name)]
    done = subprocess.run([*command, *requirements], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotPack(f"pip cannot fetch the packages for Python {python}:\n{done.stderr}")


def unpack_wheels(wheels: Iterable[Path], site: Path) -> None:
    """Unpacks wheels side by side, without what is not needed."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if not LEFT_OUT.match(name):
                    archive.extract(name, site)


def install(source: Path, target: Path) -> list[Path]:
    """Unpacks what `pack` has collected, unless it is there already.

    Returns:
        Folders for Python's path, first ones first.

    Raises:
        CannotPack: The folder holds nothing of `pack`.
    """
    if not (source / SITE).is_file():
        raise CannotPack(
            f"--from {source}: there is no {SITE}; tools/gpu_acceptance.sh --pack makes it"
        )
    folders = []
    for name in (SITE, ENGINE):
        archive, folder = source / name, target / name.partition(".")[0]
        if not archive.is_file():
            continue
        stamp = folder / ".unpacked"
        unpacked = f"{archive.stat().st_size}"
        if not stamp.is_file() or stamp.read_text() != unpacked:
            shutil.rmtree(folder, ignore_errors=True)
            with tarfile.open(archive) as opened:
                opened.extractall(folder, filter="data")
            stamp.write_text(unpacked)
        folders.append(folder.resolve())
    return folders
