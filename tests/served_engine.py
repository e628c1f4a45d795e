"""An interpreter with vLLM, a tiny model that vLLM serves on CPU, and an engine without sync."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from servers_of import needed_model
from tiny_recipe import write_model
from transformers import AutoModelForCausalLM, LlamaConfig

from megatron_resrl.config.schema import (
    DataConfig,
    ModelConfig,
    PrecisionConfig,
    Recipe,
    RolloutConfig,
    VllmConfig,
)
from megatron_resrl.rollout.engines.vllm import Sender, VllmEngine
from megatron_resrl.rollout.weight_sync.control import ServerControl

VARIABLE = "MEGATRON_RESRL_VLLM_PYTHON"
_DEFAULT = Path(__file__).resolve().parents[1] / ".venv-vllm" / "bin" / "python"


@lru_cache
def vllm_python() -> tuple[str | None, str]:
    """The interpreter, or None; and why there is none."""
    python = os.environ.get(VARIABLE, str(_DEFAULT))
    code = "import importlib.util as u; assert u.find_spec('vllm')"
    try:
        found = subprocess.run([python, "-c", code], capture_output=True, check=False)
    except OSError as error:
        return None, f"no interpreter with vLLM: {python} ({error.strerror}); set {VARIABLE}"
    if found.returncode:
        return None, f"{python} has no vLLM; set {VARIABLE}"
    return python, ""


def write_served_model(directory: Path) -> Path:
    """A Llama with heads of a size that vLLM has CPU kernels for, and distributions that differ."""
    write_model(directory)  # For its tokenizer.
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(6)  # Far from the uniform distribution of a fresh model.
    model.save_pretrained(directory)
    return directory


def served_recipe(model: Path, output: Path, **vllm: Any) -> Recipe:
    """A recipe whose servers load the model's own weights, as `NoSender` brings none."""
    arguments = {"load-format": "auto", **vllm.pop("arguments", {})}
    return Recipe(
        output_dir=str(output),
        model=ModelConfig(path=str(model)),
        precision=PrecisionConfig(params_dtype="fp32"),
        data=DataConfig(max_prompt_length=256),
        rollout=RolloutConfig(engine="vllm", max_response_length=3840),
        vllm=VllmConfig(python=vllm_python()[0], arguments=arguments, **vllm),
    )


@dataclass(frozen=True)
class Sent:
    """What `NoSender` reports."""

    seconds: float = 1.0
    num_bytes: int = 0
    sent_bytes: int = 0
    changed_fraction: float | None = None
    failed: tuple[str, ...] = ()


class NoSender:
    """Leaves the servers' weights as they are, and notes who was to get which version."""

    def __init__(self) -> None:
        self.connected: list[str] = []
        self.sent: list[tuple[int, list[str]]] = []

    def connect(self, servers: Sequence[ServerControl]) -> None:
        self.connected += [server.url for server in servers]

    def send(self, servers: Sequence[ServerControl], version: int) -> Sent:
        self.sent.append((version, [server.url for server in servers]))
        for server in servers:
            server.post("/update_weight_version", {"new_version": str(version)})
        return Sent()

    def close(self) -> None:
        pass


def wait_until(condition: Callable[[], object], timeout_s: float = 120) -> None:
    """Returns when the condition holds; fails if it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextlib.contextmanager
def one_rank() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def start_engine(recipe: Recipe, sender: Sender | None = None) -> VllmEngine:
    """The engine of a recipe; default: with a `NoSender`."""
    return VllmEngine(
        needed_model(recipe),
        recipe.vllm,
        sender or NoSender(),
        colocated=recipe.rollout.placement == "colocated",
        output_dir=Path(recipe.output_dir),
    )


@contextlib.contextmanager
def engine_of(recipe: Recipe, sender: NoSender | None = None) -> Iterator[VllmEngine]:
    """A started engine, closed with the block; default: with a `NoSender`."""
    engine = start_engine(recipe, sender)
    try:
        yield engine
    finally:
        engine.close()
