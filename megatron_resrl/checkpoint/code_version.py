"""Which code wrote a checkpoint."""

from __future__ import annotations

import subprocess
from importlib import metadata
from pathlib import Path

import megatron_resrl

_PACKAGES = ("torch", "megatron-core", "transformers")


def code_version() -> dict[str, str | None]:
    """Versions of this package and of the libraries that affect its numbers; the git commit.

    Returns:
        By name; `git_commit` is None outside of a checkout, and ends with "+changes" if files that
        git knows differ from it.
    """
    versions = {name: metadata.version(name) for name in _PACKAGES}
    return {"megatron-resrl": megatron_resrl.__version__, **versions, "git_commit": _git_commit()}


def _git_commit() -> str | None:
    root = Path(megatron_resrl.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        changes = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True)
    except OSError:  # no git here
        return None
    if head.returncode:
        return None
    return head.stdout.strip() + ("+changes" if changes.returncode else "")
