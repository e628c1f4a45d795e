"""Number formats and what only runs on CUDA."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from megatron_resrl.checks.facts import RunCheck, cuda_available
from megatron_resrl.config.problems import Problem
from megatron_resrl.config.schema import ParallelConfig, PrecisionConfig
from megatron_resrl.policy.families import Family

_CAPABILITY = {
    "delayed": ((8, 9), "Ada"),
    "tensorwise": ((8, 9), "Ada"),
    "blockwise": ((9, 0), "Hopper"),
    "mxfp8": ((10, 0), "Blackwell"),
}
"""FP8 recipe -> first compute capability that has it, and that generation's name."""

_WIDTHS = {"delayed": 16, "tensorwise": 16, "blockwise": 16, "mxfp8": 32}
"""FP8 recipe -> what the sizes of a rank's matrices are multiples of."""

_CUDA_ONLY_OPTIMIZER = ("optimizer_cpu_offload", "use_precision_aware_optimizer")


def _check_fp8(
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

        yield from check_fp8_generation(
            precision, torch.cuda.get_device_capability(), "this device"
        )


def check_fp8_generation(
    precision: PrecisionConfig, capability: tuple[int, int], device: str
) -> Iterator[Problem]:
    """Whether a device has FP8 and the block formats of a recipe.

    Args:
        precision: The recipe's section.
        capability: CUDA's compute capability of the device.
        device: What the message calls it.
    """
    needed, generation = _CAPABILITY[precision.fp8_recipe]
    if precision.fp8 is not None and capability < needed:
        yield Problem(
            "precision.fp8_recipe",
            precision.fp8_recipe,
            f"it needs {generation} (compute capability {needed[0]}.{needed[1]}) or newer, "
            f"and {device} has {capability[0]}.{capability[1]}",
            "choose another recipe or set precision.fp8 to null",
            "machine",
        )


def _check_fp8_widths(
    precision: PrecisionConfig,
    parallel: ParallelConfig,
    hf_config: Mapping[str, Any],
    family: Family | None,
) -> Iterator[Problem]:
    """Transformer Engine's FP8 products take matrices of certain widths only."""
    ranks = parallel.tensor_model_parallel_size
    if precision.fp8 is None or ranks < 1:
        return
    # The blockwise recipe gathers the input of a layer in whole blocks.
    gathered = precision.fp8_recipe == "blockwise" and parallel.sequence_parallel
    multiple = _WIDTHS[precision.fp8_recipe]
    for name, width, wanted in (
        ("hidden_size", _width(hf_config, "hidden_size"), 128 if gathered else multiple),
        ("intermediate_size", _width(hf_config, "intermediate_size", ranks), multiple),
        *(
            (heads, _heads_width(hf_config, family, heads, ranks), multiple)
            for heads in ("num_attention_heads", "num_key_value_heads")
        ),
    ):
        if width is not None and width % wanted:
            problem = (
                f"products with the {precision.fp8_recipe} recipe take multiples of {wanted}, and "
                f"the model's {name} makes matrices of {width} on each of {ranks} "
                "tensor-parallel ranks"
            )
            fix = "use fewer tensor-parallel ranks or set it to null"
            yield Problem("precision.fp8", precision.fp8, problem, fix)


def _width(config: Mapping[str, Any], name: str, ranks: int = 1) -> int | None:
    """A rank's share of a width; None if config.json lacks it or ranks cannot share it evenly."""
    count = config.get(name)
    return count // ranks if isinstance(count, int) and count % ranks == 0 else None


def _heads_width(
    config: Mapping[str, Any], family: Family | None, name: str, ranks: int
) -> int | None:
    """The width of a rank's share of heads; None like `_width`, or if the family is not known."""
    heads = _width(config, name, ranks)
    return None if heads is None or family is None else heads * family.head_size


def _check_delayed_scaling(
    precision: PrecisionConfig, transformer_fields: Mapping[str, Any]
) -> Iterator[Problem]:
    if precision.fp8 is None or precision.fp8_recipe != "delayed":
        return
    if transformer_fields.get("first_last_layers_bf16"):
        yield Problem(
            "model.megatron.first_last_layers_bf16",
            True,
            "megatron-core refuses it together with precision.fp8_recipe 'delayed'",
            "leave it out or use the tensorwise recipe",
        )


def _check_optimizer_device(
    optimizer_fields: Mapping[str, Any], has_cuda: bool
) -> Iterator[Problem]:
    asked = [name for name in _CUDA_ONLY_OPTIMIZER if optimizer_fields.get(name)]
    if asked and not has_cuda:
        for name in asked:
            setting = f"optimizer.megatron.{name}"
            problem = "it needs CUDA, which is absent"
            yield Problem(setting, True, problem, "leave it out", "machine")


PRECISION_CHECKS: tuple[RunCheck, ...] = (
    lambda facts: _check_fp8(
        facts.recipe.precision,
        facts.family,
        has_cuda=facts.has_cuda,
        elsewhere=facts.elsewhere,
    ),
    lambda facts: _check_fp8_widths(
        facts.recipe.precision, facts.recipe.parallel, facts.hf_config, facts.family
    ),
    lambda facts: _check_delayed_scaling(facts.recipe.precision, facts.recipe.model.megatron),
    lambda facts: _check_optimizer_device(facts.recipe.optimizer.megatron, facts.has_cuda),
)
