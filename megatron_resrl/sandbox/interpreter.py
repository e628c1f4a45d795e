"""The files of this Python that a program needs: the standard library and shared libraries."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from megatron_resrl.errors import InputError

_LISTING = """
import ctypes, glob, json, os, sys
modules = glob.glob(os.path.join(sys.argv[1], "lib-dynload", "*.so"))
for path in [*modules, *sys.argv[2:]]:
    try:
        ctypes.CDLL(path)
    except OSError:
        pass  # What it needs is not installed.
class Found(ctypes.Structure):
    _fields_ = [("address", ctypes.c_void_p), ("name", ctypes.c_char_p)]
names = []
@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Found), ctypes.c_size_t, ctypes.c_void_p)
def take(found, size, data):
    names.append(os.fsdecode(found.contents.name or b""))
    return 0
ctypes.CDLL(None).dl_iterate_phdr(take, None)
print(json.dumps(names))
"""
"""Names of shared libraries, as the loader finds them, that the standard library needs."""
LOADER_CACHE = "/etc/ld.so.cache"
"""Where the loader looks up libraries."""
_OF_WHEELS = (
    *("libstdc++.so.6", "libgcc_s.so.1", "libm.so.6", "libdl.so.2", "librt.so.1"),
    *("libpthread.so.0", "libutil.so.1"),
)
"""Libraries of the system that binary packages may count on (PEP 600)."""
_LIMIT_S = 60.0


@dataclass(frozen=True)
class Interpreter:
    """Of this process, without its virtual environment and installed packages."""

    executable: str
    folders: tuple[str, ...]
    """The standard library."""
    hidden: tuple[str, ...]
    """Folders in it with installed packages."""
    libraries: tuple[str, ...]
    """Shared libraries, by the names that the loader knows them by."""


@functools.cache
def find_interpreter() -> Interpreter:
    """The interpreter of this process.

    Raises:
        InputError: It cannot be started.
    """
    executable = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    folders = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}
    base = {os.path.realpath(each.replace(sys.prefix, sys.base_prefix)) for each in folders}
    platform_library = sysconfig.get_path("platstdlib").replace(sys.prefix, sys.base_prefix)
    command = [executable, "-I", "-S", "-c", _LISTING, platform_library, *_OF_WHEELS]
    try:
        found = subprocess.run(command, capture_output=True, check=True, timeout=_LIMIT_S)
        names = json.loads(found.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise InputError(f"{executable}, which would run programs, cannot: {error}") from error
    packages = (
        Path(folder, name) for folder in base for name in ("site-packages", "dist-packages")
    )
    return Interpreter(
        executable=executable,
        folders=tuple(sorted(base)),
        hidden=tuple(str(each) for each in packages if each.is_dir()),
        # The first is the executable, without a name; the kernel's own has no file.
        libraries=tuple(
            name
            for name in dict.fromkeys(names)
            if os.path.isfile(name) and not name.startswith(platform_library)
        ),
    )
