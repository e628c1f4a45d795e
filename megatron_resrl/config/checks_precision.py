"""Number formats and what only runs on CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from megatron_resrl.config.facts import Facts, cuda_available
from megatron_resrl.config.problems import Problem

_CAPABILITY = {
    "delayed": ((8, 9), "Ada"),
    "tensorwise": ((8, 9), "Ada"),
    "blockwise": ((9, 0), "Hopper"),
    "mxfp8": ((10, 0), "Blackwell"),
}
"""FP8 recipe -> first compute capability that has it, and that generation's name."""

_CUDA_ONLY_OPTIMIZER = ("optimizer_cpu_offload", "use_precision_aware_optimizer")


def _check_fp8(facts: Facts) -> Iterator[Problem]:
    precision = facts.recipe.precision
    if precision.fp8 is None:
        return
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


PRECISION_CHECKS = (_check_fp8, _check_delayed_scaling, _check_optimizer_device)
