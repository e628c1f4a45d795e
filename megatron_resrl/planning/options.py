"""The options of `plan`, which are no settings of a recipe."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from megatron_resrl.config.options import separate_options
from megatron_resrl.config.stages import STAGES, Stage
from megatron_resrl.errors import SettingError
from megatron_resrl.planning.gpus import GPUS, Rates
from megatron_resrl.planning.layers import LAYERS, Layers


@dataclass(frozen=True)
class PlanOptions:
    """Machines, lengths, and what is wanted; see `options_parser` for each."""

    stage: Stage = "train"
    nodes: int = 1
    gpus_per_node: int = 8
    gpu: str = "h100"
    prompt_tokens: int | None = None
    response_tokens: int | None = None
    document_tokens: int | None = None
    server_gpus: int | None = None
    decode_host_ms: float | None = None
    quick: bool = False
    search: bool = False
    dry_runs: int = 3
    layers: Layers | None = None
    json: bool = False
    rates: Rates = field(default_factory=Rates)

    @property
    def world_size(self) -> int:
        """Ranks of the job."""
        return self.nodes * self.gpus_per_node


class _Wrong(Exception):
    """A value that an option cannot have; says what would be right. No ValueError, whose text
    argparse would replace by its own."""


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise _Wrong("a whole number of at least 1")
    return int(text)


def _layers(text: str) -> Layers:
    for name in LAYERS:
        if text == name:
            return name
    raise _Wrong(" or ".join(LAYERS))


def _stage(text: str) -> Stage:
    for name in STAGES:
        if text == name:
            return name
    raise _Wrong(" or ".join(STAGES))


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise _Wrong("a number of at least 0")
    return value


def options_parser() -> argparse.ArgumentParser:
    """A parser of the options, which leaves settings of the recipe alone."""
    parser = argparse.ArgumentParser(
        prog="megatron-resrl plan",
        usage="megatron-resrl plan RECIPE.yaml [options] [--section.setting VALUE ...]",
        description="What a job will hold, send and take, from config.json alone.",
        add_help=False,
        allow_abbrev=False,
        exit_on_error=False,
    )
    defaults = PlanOptions()

    def add(name: str, convert: Callable[[str], object], meaning: str) -> None:
        spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
        default = getattr(defaults, name, None)
        parser.add_argument(*spellings, type=_named(name, convert), default=default, help=meaning)

    add("stage", _stage, f"whose recipe it is: {', '.join(STAGES)} (default: train)")
    add("nodes", _count, "machines that train; those of vllm.nodes come on top (default: 1)")
    add("gpus_per_node", _count, "GPUs of each, one rank per GPU (default: 8)")
    add("gpu", str, f"{', '.join(GPUS)}; or a name of your own with all rates (default: h100)")
    meaning = "mean length of prompts; sft: tokens of a conversation that are not learned"
    add("prompt_tokens", _count, f"{meaning} (default: data.max_prompt_length; sft: 1)")
    meaning = "mean length of responses; memory is always planned for the longest"
    add("response_tokens", _count, f"{meaning} (default: as long as the recipe allows)")
    meaning = "pretrain with data.document_mask: mean length of documents"
    add("document_tokens", _count, f"{meaning} (default: data.sequence_length)")
    add("server_gpus", _count, "GPUs of each server of vllm.urls (default: 1)")
    meaning = "milliseconds that the host adds to each decoding step of vLLM"
    add("decode_host_ms", _number, f"{meaning} (default: 0, it schedules while the GPU works)")
    meaning = "layouts that --search dry-runs, the fastest by formula (default: 3; --quick: none)"
    add("dry_runs", _count, meaning)
    add("gpu_memory_gib", _number, "memory of a GPU, GiB")
    add("matrix_tflops", _number, "peak of dense bf16 products, TFLOP/s; fp8 is twice as fast")
    add("memory_gb_s", _number, "memory bandwidth, GB/s")
    add("nvlink_gb_s", _number, "one direction of the links inside of a node, GB/s per GPU")
    add("network_gb_s", _number, "one direction of the network between nodes, GB/s per GPU")
    meaning = (
        "layers of the dry runs: Transformer Engine's Python is enough for its layers "
        "(default: they, where it is installed)"
    )
    add("layers", _layers, meaning)
    meaning = "formulas of scoring, update and vLLM instead of dry runs; takes a second"
    parser.add_argument("--quick", action="store_true", help=meaning)
    meaning = "try layouts, recomputation and micro-batch sizes, and rank those that fit"
    parser.add_argument("--search", action="store_true", help=meaning)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    return parser


def _named(name: str, convert: Callable[[str], object]) -> Callable[[str], object]:
    """A converter whose error is a problem of the option."""

    def converted(text: str) -> object:
        try:
            return convert(text)
        except _Wrong as error:
            raise _Wrong(f"--{name}", text, f"it is not {error}", f"give {error}") from None

    return converted


def take_options(arguments: Sequence[str]) -> tuple[PlanOptions, list[str]]:
    """Separates the options of `plan` from settings of the recipe.

    Args:
        arguments: Command line behind the recipe.

    Returns:
        The options, and what is left for the recipe, in its order.

    Raises:
        SettingError: An option has no value, or none that is possible.
    """
    try:
        found, rest = separate_options(options_parser(), arguments)
    except _Wrong as error:
        raise SettingError(*error.args) from None
    given = vars(found)
    rates = Rates(**{name: given.pop(name) for name in vars(Rates())})
    return PlanOptions(**given, rates=rates), rest
