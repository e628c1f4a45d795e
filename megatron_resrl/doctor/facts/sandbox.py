"""Which sandboxes there are for programs of the reward `code`."""

from __future__ import annotations

from dataclasses import dataclass, field

from megatron_resrl.config.schema_questions import CodeConfig
from megatron_resrl.errors import SettingError
from megatron_resrl.sandbox.backends import (
    ask_server,
    find_backend,
    try_backend,
    wanted_backends,
)


@dataclass(frozen=True)
class SandboxFacts:
    """Of one host."""

    backend: str | None = None
    """The one that a run would use; None: there is none."""
    problem: str = ""
    """Why there is none, and what to do."""
    remedy: str = ""
    lacking: dict[str, str] = field(default_factory=dict)
    """Backends that the recipe prefers, each with why it cannot be used."""


def gather_sandbox(code: CodeConfig) -> SandboxFacts:
    """Tries out the backends of this host that a recipe allows.

    Args:
        code: Of the recipe.
    """
    try:
        backend = find_backend(code)
        if backend == "remote":
            ask_server(code)
    except SettingError as error:
        return SandboxFacts(None, error.problem, error.fix)
    lacking: dict[str, str] = {}
    for each in wanted_backends(code):
        if each == backend or each == "remote":
            break
        lacking[each] = try_backend(each).problem or ""
    return SandboxFacts(backend, lacking=lacking)
