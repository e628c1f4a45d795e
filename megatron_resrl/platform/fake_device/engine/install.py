"""Loads Transformer Engine's Python for the device without numbers, for the rest of the process."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from megatron_resrl.errors import RunError
from megatron_resrl.platform.engine_python.load import load_engine, name_layouts_and_masks
from megatron_resrl.platform.fake_device.cuda import Properties
from megatron_resrl.platform.fake_device.engine import (
    attention,
    lists,
    products,
    quantization,
    rotation,
)

_ANSWERED = (attention, lists, products, quantization, rotation)


def install_engine() -> None:
    """Must run before anything imports transformer_engine or megatron-core.

    Raises:
        ModuleNotFoundError: Its Python is not there.
        RunError: megatron-core is imported already, without it.
    """
    if "megatron.core" in sys.modules:
        raise RunError(
            "a dry run on Transformer Engine's layers started in a process that had imported "
            "megatron-core without them"
        )
    properties = Properties()
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # It would compile each little function in C++.
    torch.cuda.get_device_properties = lambda *args: properties
    torch.cuda.get_device_capability = lambda *args: (properties.major, properties.minor)
    if torch.version.cuda is None:  # FP8 recipes ask for its version.
        torch.version.cuda = "13.0"
    functions = (function for file in _ANSWERED for function in file.FUNCTIONS)
    load_engine(functions, where="in a dry run")
    name_layouts_and_masks(attention.LAYOUTS, attention.MASKS)
    _choose_attention_as_of_real_tensors()
    _answer_random_state()


def _answer_random_state() -> None:
    """The device draws no numbers, and has a state without meaning."""
    distributed: Any = importlib.import_module("transformer_engine.pytorch.distributed")
    distributed._get_cuda_rng_state = lambda *args, **options: torch.cuda.get_rng_state()
    distributed._set_cuda_rng_state = lambda *args, **options: None


def _choose_attention_as_of_real_tensors() -> None:
    """Its choice of a kernel knows torch.Tensor and its own FP8 tensors by their type."""
    utils: Any = importlib.import_module(
        "transformer_engine.pytorch.attention.dot_product_attention.utils"
    )
    choose = utils.get_attention_backend

    @functools.wraps(choose)
    def choose_for_real(parameters: Any) -> Any:
        if issubclass(parameters.qkv_type, FakeTensor):
            parameters.qkv_type = torch.Tensor
        return choose(parameters)

    utils.get_attention_backend = choose_for_real
