"""FP8: devices, libraries, sizes of matrices, and layers that stay in bf16."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple

from megatron_resrl.checks.facts import RunCheck, cuda_available
from megatron_resrl.config.problems import Problem
from megatron_resrl.config.schema import ParallelConfig, PrecisionConfig
from megatron_resrl.policy.alignment import alignment
from megatron_resrl.policy.families import Family
from megatron_resrl.policy.families.mixture import Mixture

Version = tuple[int, int]


class _Devices(NamedTuple):
    """Which devices Transformer Engine computes a recipe on (its `check_recipe_support`)."""

    first: Version
    """Compute capability."""
    generation: str
    """Name of the first devices."""
    before: Version | None = None
    """The first compute capability that no longer has it; None: all later ones have it."""
    cuda: Version | None = None
    """The first version of CUDA, of which torch is a build; None: any."""


_DEVICES = {
    "delayed": _Devices((8, 9), "Ada"),
    "tensorwise": _Devices((8, 9), "Ada"),
    "blockwise": _Devices((9, 0), "Hopper", cuda=(12, 9)),
    "mxfp8": _Devices((10, 0), "Blackwell", before=(12, 0)),
}


def check_fp8_device(
    precision: PrecisionConfig, capability: Version, device: str, cuda: str | None = None
) -> Iterator[Problem]:
    """Whether a device can compute products by a recipe.

    Args:
        precision: The recipe's section.
        capability: CUDA's compute capability of the device.
        device: What the message calls it.
        cuda: Version of CUDA that torch was built with; None: not known.
    """
    needed, found = _DEVICES[precision.fp8_recipe], f"{device} has {_dotted(capability)}"
    first, before = needed.first, needed.before
    reason = None
    if capability < first:
        reason = f"it needs {needed.generation} (compute capability {_dotted(first)}) or newer"
    elif before is not None and capability >= before:
        reason = (
            f"Transformer Engine has it from compute capability {_dotted(first)} to below "
            f"{_dotted(before)}"
        )
    elif needed.cuda is not None and cuda is not None and _version(cuda) < needed.cuda:
        reason, found = f"it needs CUDA {_dotted(needed.cuda)} or newer", f"torch has {cuda}"
    if precision.fp8 is not None and reason is not None:
        yield Problem(
            "precision.fp8_recipe",
            precision.fp8_recipe,
            f"{reason}, and {found}",
            "choose another recipe or set precision.fp8 to null",
            "machine",
        )


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


def _version(text: str) -> Version:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def _check_machine(
    precision: PrecisionConfig, family: Family | None, *, has_cuda: bool, elsewhere: bool
) -> Iterator[Problem]:
    if precision.fp8 is None:
        return
    if family is not None and not family.fp8:
        problem = f"FP8 is not supported for {family.architecture}"
        yield Problem("precision.fp8", precision.fp8, problem, "set it to null")
    if find_spec("transformer_engine") is None and not elsewhere:
        # megatron-core would ignore the setting without a word and compute in params_dtype.
        fix = "install the `te` extra or set it to null"
        problem = "Transformer Engine is not installed"
        yield Problem("precision.fp8", precision.fp8, problem, fix, "machine")
    if not has_cuda:
        yield Problem("precision.fp8", precision.fp8, "CUDA is absent", "set it to null", "machine")
    if cuda_available():
        import torch

        capability, cuda = torch.cuda.get_device_capability(), torch.version.cuda
        yield from check_fp8_device(precision, capability, "this device", cuda)


def _check_widths(
    precision: PrecisionConfig,
    parallel: ParallelConfig,
    hf_config: Mapping[str, Any],
    family: Family | None,
) -> Iterator[Problem]:
    """Transformer Engine's FP8 products take matrices of certain widths only."""
    ranks = parallel.tensor_model_parallel_size
    if precision.fp8 is None or ranks < 1:
        return
    multiple = alignment(
        sequence_parallel_size=ranks if parallel.sequence_parallel else 1,
        fp8_recipe=precision.fp8_recipe,
    )
    expert_ranks = parallel.expert_tensor_parallel_size or ranks
    sizes = [
        ("hidden_size", _share(hf_config.get("hidden_size"), 1), multiple.hidden, ranks),
        (
            "intermediate_size",
            _share(hf_config.get("intermediate_size"), ranks),
            multiple.width,
            ranks,
        ),
    ]
    if family is not None:
        for name in ("num_attention_heads", "num_key_value_heads"):
            heads = _share(hf_config.get(name), ranks)
            width = None if heads is None else heads * family.head_size
            sizes.append((name, width, multiple.width, ranks))
    if isinstance(family, Mixture) and family.expert_size_field != "intermediate_size":
        width = _share(family.expert_size, expert_ranks)
        sizes.append((family.expert_size_field, width, multiple.width, expert_ranks))
    for name, width, wanted, shared in sizes:
        if width is not None and width % wanted:
            problem = (
                f"products with the {precision.fp8_recipe} recipe take multiples of {wanted}, and "
                f"the model's {name} makes matrices of {width} on each of {shared} "
                "tensor-parallel ranks"
            )
            fix = "use fewer tensor-parallel ranks or set it to null"
            yield Problem("precision.fp8", precision.fp8, problem, fix)


def _share(count: Any, ranks: int) -> int | None:
    """A rank's share of a size; None if config.json lacks it or ranks cannot share it evenly."""
    return count // ranks if isinstance(count, int) and count % ranks == 0 else None


def _check_bf16_layers(
    precision: PrecisionConfig, parallel: ParallelConfig, layers: Any
) -> Iterator[Problem]:
    """Layers at both ends that stay in bf16."""
    counts = {
        name: getattr(precision, name)
        for name in ("num_layers_at_start_in_bf16", "num_layers_at_end_in_bf16")
        if getattr(precision, name)
    }
    if precision.fp8 is None or not counts:
        return
    first = f"precision.{next(iter(counts))}"
    if precision.fp8_recipe == "delayed":
        problem = "megatron-core refuses layers in bf16 with precision.fp8_recipe 'delayed'"
        fix = "set it to 0 or use the tensorwise recipe"
        yield Problem(first, next(iter(counts.values())), problem, fix)
        return
    stages = parallel.pipeline_model_parallel_size
    if not isinstance(layers, int) or stages < 1:
        return
    most = layers // stages
    for name, count in counts.items():
        if count > most:
            problem = f"megatron-core allows only a pipeline stage's {most} layers at each end"
            yield Problem(f"precision.{name}", count, problem, f"use at most {most}")
    if sum(counts.values()) >= layers:
        problem = f"all {layers} layers of the model would be in bf16, and none in FP8"
        fix = "use smaller numbers or set precision.fp8 to null"
        yield Problem(first, next(iter(counts.values())), problem, fix)


FP8_CHECKS: tuple[RunCheck, ...] = (
    lambda facts: _check_machine(
        facts.recipe.precision,
        facts.family,
        has_cuda=facts.has_cuda,
        elsewhere=facts.elsewhere,
    ),
    lambda facts: _check_widths(
        facts.recipe.precision, facts.recipe.parallel, facts.hf_config, facts.family
    ),
    lambda facts: _check_bf16_layers(
        facts.recipe.precision, facts.recipe.parallel, facts.hf_config.get("num_hidden_layers")
    ),
)
