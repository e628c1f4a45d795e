"""Number formats and what only runs on CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from megatron_resrl.checks.facts import Facts, cuda_available
from megatron_resrl.config.problems import Problem

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


def _check_fp8(facts: Facts) -> Iterator[Problem]:
    precision = facts.recipe.precision
    if precision.fp8 is None:
        return
    if facts.family is not None and not facts.family.fp8:
        problem = f"FP8 is not supported for {facts.family.architecture}"
        yield Problem("precision.fp8", precision.fp8, problem, "set it to null")
    if find_spec("transformer_engine") is None and not facts.elsewhere:
        # megatron-core would ignore the setting without a word and compute in params_dtype.
        fix = "install the `te` extra or set it to null"
        problem = "Transformer Engine is not installed"
        yield Problem("precision.fp8", precision.fp8, problem, fix, "machine")
    if not facts.has_cuda:
        yield Problem("precision.fp8", precision.fp8, "CUDA is absent", "set it to null", "machine")
    if not cuda_available():
        return
    import torch

    needed, generation = _CAPABILITY[precision.fp8_recipe]
    found = torch.cuda.get_device_capability()
    if found < needed:
        yield Problem(
            "precision.fp8_recipe",
            precision.fp8_recipe,
            f"it needs {generation} (compute capability {needed[0]}.{needed[1]}) or newer, "
            f"and this device has {found[0]}.{found[1]}",
            "choose another recipe or set precision.fp8 to null",
            "machine",
        )


def _check_fp8_widths(facts: Facts) -> Iterator[Problem]:
    """Transformer Engine's FP8 products take matrices of certain widths only."""
    precision, parallel = facts.recipe.precision, facts.recipe.parallel
    ranks = parallel.tensor_model_parallel_size
    if precision.fp8 is None or ranks < 1:
        return
    # The blockwise recipe gathers the input of a layer in whole blocks.
    gathered = precision.fp8_recipe == "blockwise" and parallel.sequence_parallel
    multiple = _WIDTHS[precision.fp8_recipe]
    for name, width, wanted in (
        ("hidden_size", _width(facts, "hidden_size"), 128 if gathered else multiple),
        ("intermediate_size", _width(facts, "intermediate_size", ranks), multiple),
        ("num_attention_heads", _width(facts, "num_attention_heads", ranks, heads=True), multiple),
        ("num_key_value_heads", _width(facts, "num_key_value_heads", ranks, heads=True), multiple),
    ):
        if width is not None and width % wanted:
            problem = (
                f"products with the {precision.fp8_recipe} recipe take multiples of {wanted}, and "
                f"the model's {name} makes matrices of {width} on each of {ranks} "
                "tensor-parallel ranks"
            )
            fix = "use fewer tensor-parallel ranks or set it to null"
            yield Problem("precision.fp8", precision.fp8, problem, fix)


def _width(facts: Facts, name: str, ranks: int = 1, *, heads: bool = False) -> int | None:
    """A rank's share of a width; None if config.json lacks it or ranks cannot share it evenly."""
    config = facts.hf_config
    count = config.get(name)
    if not isinstance(count, int) or count % ranks:
        return None
    if not heads:
        return count // ranks
    return None if facts.family is None else count // ranks * facts.family.head_size


def _check_delayed_scaling(facts: Facts) -> Iterator[Problem]:
    precision = facts.recipe.precision
    if precision.fp8 is None or precision.fp8_recipe != "delayed":
        return
    if facts.recipe.model.megatron.get("first_last_layers_bf16"):
        yield Problem(
            "model.megatron.first_last_layers_bf16",
            True,
            "megatron-core refuses it together with precision.fp8_recipe 'delayed'",
            "leave it out or use the tensorwise recipe",
        )


def _check_optimizer_device(facts: Facts) -> Iterator[Problem]:
    asked = [name for name in _CUDA_ONLY_OPTIMIZER if facts.recipe.optimizer.megatron.get(name)]
    if asked and not facts.has_cuda:
        for name in asked:
            setting = f"optimizer.megatron.{name}"
            problem = "it needs CUDA, which is absent"
            yield Problem(setting, True, problem, "leave it out", "machine")


PRECISION_CHECKS = (_check_fp8, _check_fp8_widths, _check_delayed_scaling, _check_optimizer_device)
