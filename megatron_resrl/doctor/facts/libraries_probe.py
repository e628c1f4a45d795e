"""Run by any interpreter, that of vLLM included: versions, and whether libraries can be imported.

Imports nothing of this package. Prints JSON objects line by line, so that what came before a crash
is known.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterable
from importlib import metadata
from typing import Any

_MESSAGE_CHARACTERS = 300
"""Longer than that, an error holds the messages of several libraries."""


def main(request: dict[str, Any]) -> None:
    """Prints the facts.

    Args:
        request: `versions`: names of distributions; `requirements`: those whose metadata are
            wanted; `imports`: modules, each with the one whose presence shows that it is installed.
    """
    _tell(python=sys.version.split()[0], executable=sys.executable)
    required = {name: _requirements(name) for name in request["requirements"]}
    lines = (line for each in required.values() for line in each)
    names = {found[0] for line in lines if (found := re.match(r"[\w.-]+", line))}
    _tell(versions=_versions([*request["versions"], *sorted(names)]), requirements=required)
    for name, sign in request["imports"]:
        if not _is_there(sign):
            continue
        _tell(importing=name)
        try:
            importlib.import_module(name)
        except BaseException as error:
            _tell(imported=name, error=_shortened(error))
            continue
        _tell(imported=name, error=None)
        if name == "torch":
            _tell(torch=_torch())


def _torch() -> dict[str, Any]:
    """What torch was built with, and the libraries that it has loaded; see `software.Torch`."""
    import torch

    facts: dict[str, Any] = {"version": str(torch.__version__), "cuda": torch.version.cuda}
    if torch.version.cuda is None:
        return facts
    try:
        facts["cudnn"] = torch.backends.cudnn.version()
        facts["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        facts["architectures"] = torch.cuda.get_arch_list()
        facts["devices"] = torch.cuda.device_count()
        if facts["devices"]:
            torch.cuda.init()
            devices = range(torch.cuda.device_count())
            facts["capabilities"] = [
                list(torch.cuda.get_device_capability(device)) for device in devices
            ]
    except Exception as error:
        facts["cuda_error"] = _shortened(error)
    return facts


def _versions(names: Iterable[str]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _requirements(name: str) -> list[str]:
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _shortened(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:_MESSAGE_CHARACTERS]


def _tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    # Some libraries crash or hang when the interpreter ends.
    os._exit(0)
