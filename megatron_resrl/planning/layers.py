"""Which layers a dry run takes: Transformer Engine's where its Python is, else megatron-core's."""

from __future__ import annotations

from typing import Literal

from megatron_resrl.config.schema import PrecisionConfig
from megatron_resrl.errors import SettingError
from megatron_resrl.platform.engine_python.files import find_engine

Layers = Literal["transformer_engine", "local"]
LAYERS: tuple[Layers, ...] = ("transformer_engine", "local")

_INSTALL = "pip install --no-deps transformer-engine==2.11.0"


def layers_for(asked: Layers | None, precision: PrecisionConfig) -> Layers:
    """The layers of a plan's dry runs.

    Args:
        asked: None: Transformer Engine's, where its Python can be found.
        precision: Of the recipe.

    Raises:
        SettingError: Transformer Engine's layers are needed, and its Python is not here.
    """
    here = find_engine() is not None
    if asked == "transformer_engine" and not here:
        problem = "its Python is not installed here"
        raise SettingError("--layers", asked, problem, f"{_INSTALL}; kernels are not needed")
    chosen = asked or ("transformer_engine" if here else "local")
    if precision.fp8 is not None and chosen == "local":
        problem = "megatron-core's own layers, on which this plan would run, have no FP8"
        fix = f"plan on Transformer Engine's ({_INSTALL}; kernels are not needed) or with --quick"
        raise SettingError("precision.fp8", precision.fp8, problem, fix)
    return chosen


def layers_sentence(layers: Layers) -> str:
    """What `plan` says of the layers of its dry runs."""
    if layers == "transformer_engine":
        return "dry runs on Transformer Engine's layers"
    if find_engine() is not None:
        return "dry runs on megatron-core's own layers"
    return (
        "Transformer Engine is not installed here: dry runs on megatron-core's own layers; "
        f"{_INSTALL} is enough for dry runs on its layers"
    )
