"""Functions over lists of tensors: norms, scaling and Adam."""

from __future__ import annotations

import torch

Lists = list[list[torch.Tensor]]


def multi_tensor_l2norm(
    chunk: int, overflow: torch.Tensor, lists: Lists, per_tensor: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm of all tensors [1], and if asked for the norm of each."""
    norms = [tensor.float().norm() for tensor in lists[0]]
    total = torch.stack(norms).norm() if norms else torch.zeros(())
    return total.view(1), torch.stack(norms) if per_tensor else torch.zeros(0)


def multi_tensor_scale(chunk: int, overflow: torch.Tensor, lists: Lists, scale: float) -> None:
    """Second list = first list * scale."""
    for source, target in zip(*lists, strict=True):
        target.copy_(source * scale)


def multi_tensor_adam(
    chunk: int,
    overflow: torch.Tensor,
    lists: Lists,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    decoupled: int,
    bias_correction: int,
    weight_decay: float,
) -> None:
    """AdamW on (gradients, parameters, first moments, second moments)."""
    if not decoupled or len(lists) != 4:
        raise NotImplementedError("only AdamW on fp32 parameters is answered on a CPU")
    first_scale = 1 - beta1**step if bias_correction else 1.0
    second_scale = 1 - beta2**step if bias_correction else 1.0
    for gradient, parameter, first, second in zip(*lists, strict=True):
        gradient = gradient.float()
        first.mul_(beta1).add_(gradient, alpha=1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        update = (first / first_scale) / ((second / second_scale).sqrt() + eps)
        parameter.sub_(update + weight_decay * parameter, alpha=lr)


FUNCTIONS = (multi_tensor_l2norm, multi_tensor_scale, multi_tensor_adam)
