"""GSPO and LLDS with every response split over two ranks, against one process with all tokens."""

from __future__ import annotations

import dataclasses
import functools

import torch
import torch.distributed as dist
from unit.algorithms.test_losses import CASES, LENGTHS, MASK_BT, Batch

from megatron_resrl.algorithms import get_algorithm
from megatron_resrl.platform.distributed import sum_over_ranks


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    token = torch.arange(sum(LENGTHS))
    # The last response has one token: a rank without any of it takes part all the same.
    mine = token[token % dist.get_world_size() == rank]
    for name in ("gspo", "llds"):
        _, options, coefficients = CASES[name]
        algorithm, batch = get_algorithm(name, **options), Batch.random()
        whole = algorithm.policy_loss(batch.inputs(coefficients)).loss
        inputs = dataclasses.replace(
            batch.inputs(coefficients, mine),
            add_over_ranks=functools.partial(sum_over_ranks, group=dist.group.WORLD),
        )
        own = algorithm.policy_loss(inputs).loss
        total = own.detach().clone()
        dist.all_reduce(total)
        torch.testing.assert_close(total, whole.detach(), rtol=1e-12, atol=1e-12)
        expected, gradient = (torch.autograd.grad(x, batch.log_probs)[0] for x in (whole, own))
        # Each rank has the gradient of its own tokens only.
        dist.all_reduce(gradient)
        torch.testing.assert_close(gradient[MASK_BT], expected[MASK_BT], rtol=1e-12, atol=1e-12)
    if rank == 0:
        print("all losses agree")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
