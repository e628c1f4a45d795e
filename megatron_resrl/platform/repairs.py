"""Repairs libraries on machines with and without CUDA: megatron-core where Transformer Engine or
Apex is missing, and what versions of Python cannot read of each other."""

from __future__ import annotations

import functools
import pathlib
import sys
from typing import Any

import torch
from torch.nn.utils import get_total_norm


def repair_megatron_core() -> None:
    """Repairs code of megatron-core that assumes optional libraries. Must be called once only."""
    from megatron.core.optimizer import USING_PYTORCH_OPTIMIZER, clip_grads
    from megatron.core.transformer.moe import moe_utils
    from megatron.core.utils import local_multi_tensor_l2_norm

    if clip_grads.l2_norm_impl is local_multi_tensor_l2_norm:
        clip_grads.l2_norm_impl = _norm_on_device
    if USING_PYTORCH_OPTIMIZER:
        _repair_distributed_optimizer_state()
    if not hasattr(moe_utils, "te_general_gemm"):
        # The router compares this name with None, but only Transformer Engine defines it.
        moe_utils.te_general_gemm = None


def name_pathlib_as_python_3_13() -> None:
    """Makes pickled paths of Python 3.13 readable, such as torch puts into a checkpoint's index.

    Only that version names the module of its paths in this way; 3.14 keeps the name for the same
    purpose.
    """
    sys.modules.setdefault("pathlib._local", pathlib)


def _norm_on_device(
    chunk_size: int, noop_flag: Any, tensor_lists: list[list[torch.Tensor]], *_: Any
) -> tuple[torch.Tensor, None]:
    """The norm of all gradients together, [1] fp32, as Apex's and Transformer Engine's kernel.

    megatron-core's substitute for them reads the norm of each gradient on the host.
    """
    (gradients,) = tensor_lists
    return get_total_norm(gradients).float().view(1), None


def _repair_distributed_optimizer_state() -> None:
    """Makes the distributed optimizer's state survive a save and a load with torch's AdamW.

    megatron-core assumes Apex's or Transformer Engine's Adam, which keeps the step in the parameter
    group. torch's AdamW keeps one step tensor per parameter. A loaded state lacks this tensor, and
    all parameters then share one, which would advance once per parameter.
    """
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    load = DistributedOptimizer.load_state_dict
    set_states = DistributedOptimizer._set_main_param_and_optimizer_states

    @functools.wraps(load)
    def load_state_dict(self: Any, state: Any) -> Any:
        result = load(self, state)
        for parameter_state in self.optimizer.state.values():
            if "step" in parameter_state:
                parameter_state["step"] = parameter_state["step"].detach().clone()
        return result

    @functools.wraps(set_states)
    def set_with_step(self: Any, model_param: Any, tensors: dict[str, Any]) -> Any:
        group_index, order = self.model_param_group_index_map[model_param]
        parameter = self.optimizer.param_groups[group_index]["params"][order]
        adam_state = self.optimizer.state[parameter]
        if "step" in adam_state and "step" not in tensors:
            tensors = {**tensors, "step": adam_state["step"]}
        return set_states(self, model_param, tensors)

    DistributedOptimizer.load_state_dict = load_state_dict
    DistributedOptimizer._set_main_param_and_optimizer_states = set_with_step
