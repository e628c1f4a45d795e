"""Sequences that share their prompt, against copies of it, in layout after layout.

Arguments: folder of the models; "default" or "slow". Rank 0 prints one line of JSON per layout and
family: the largest differences over all ranks, and the tokens saved.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import tiny_families as tiny
import torch
import torch.distributed as dist
from layouts import begin_layout
from megatron.core import parallel_state
from ranks_parity import ALL_DENSE, EXPERTS, MOE, ONE, SELECTIVE, UNIFORM, WINDOWED, Layout

from megatron_resrl.platform import distributed as platform
from megatron_resrl.policy.batches import MicroBatch, TokenBatch, TokenSequence
from megatron_resrl.policy.results import TappedStates
from megatron_resrl.rollout.worker import build_policy

FEW = ("qwen3", "gemma3")
LAYOUTS: dict[int, dict[str, Layout]] = {
    1: {
        "tp1": Layout(families=(*ALL_DENSE, *EXPERTS, "qwen3_windowed")),
        "tp1_packed": Layout(packed=True, families=ONE),
        "tp1_recompute_uniform": Layout(model=UNIFORM, families=ONE),
        "tp1_recompute_selective": Layout(model=SELECTIVE, families=ONE),
    },
    2: {
        "tp2_sp": Layout(tp=2, sp=True, families=FEW),
        "pp2": Layout(pp=2, families=ONE),
        "cp2": Layout(cp=2, families=FEW),
        "cp2_packed": Layout(cp=2, packed=True, families=ONE),
        "dp2": Layout(families=ONE),
        "dp2_ep2": Layout(ep=2, families=MOE),
        "pp2_vpp2": Layout(pp=2, vpp=2, families=ONE),
    },
}
SLOW_LAYOUTS: dict[int, dict[str, Layout]] = {
    2: {
        "tp2": Layout(tp=2, families=ALL_DENSE),
        "tp2_sp": Layout(tp=2, sp=True, families=(*ALL_DENSE, *WINDOWED)),
        "pp2": Layout(pp=2, families=ALL_DENSE),
        "cp2": Layout(cp=2, families=(*ALL_DENSE, *WINDOWED)),
        "dp2": Layout(families=ALL_DENSE),
        "dp2_ep2": Layout(ep=2, families=EXPERTS),
        "tp2_sp_ep2": Layout(tp=2, sp=True, ep=2, etp=1, families=EXPERTS),
        "cp2_recompute_selective": Layout(cp=2, model=SELECTIVE, families=ONE),
        "pp2_recompute_uniform": Layout(pp=2, model=UNIFORM, families=ONE),
    },
    4: {
        "tp2_pp2_sp": Layout(tp=2, pp=2, sp=True, families=FEW),
        "cp2_tp2_sp": Layout(cp=2, tp=2, sp=True, families=FEW),
        "cp2_pp2_vpp2": Layout(cp=2, pp=2, vpp=2, families=ONE),
        "cp4": Layout(cp=4, families=ONE),
        "tp2_dp2_sp_ep4": Layout(tp=2, sp=True, ep=4, etp=1, families=MOE),
    },
}
MICRO_BATCH = 4


def sequences() -> list[TokenSequence]:
    """Five responses to a prompt, three to another, one alone.

    The first group is cut by a micro-batch. Two of its responses begin alike and differ behind a
    message of an environment; one of the second has one token.
    """
    generator = torch.Generator().manual_seed(8)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, tiny.VOCABULARY, (count,), generator=generator).tolist())

    first, second, beginning = draw(13), draw(9), draw(5)
    turns = (True, True, False, False, True)
    return [
        TokenSequence(first, draw(6)),
        TokenSequence(first, beginning + draw(3), turns + (True,) * 3),
        TokenSequence(first, beginning + draw(7), turns + (True,) * 7),
        TokenSequence(first, draw(11)),
        TokenSequence(first, draw(2)),
        TokenSequence(second, draw(1)),
        TokenSequence(second, draw(4)),
        TokenSequence(second, draw(8)),
        TokenSequence(draw(3), draw(5)),
    ]


def own_rows() -> list[int]:
    """Of this data-parallel replica: whole groups."""
    if parallel_state.get_data_parallel_world_size() == 1:
        return list(range(9))
    return list(range(5)) if parallel_state.get_data_parallel_rank() % 2 == 0 else [5, 6, 7, 8]


def measure(layout: Layout, path: Path, shared: str) -> tuple[dict[str, Any], int]:
    """What one way gives, by name, and the positions that the model is fed."""
    # Without a distributed optimizer every rank has all gradients.
    # Transformer Engine's layers share prompts in fp32 where sequences are packed anyway.
    packed = layout.packed or "TE_ON_CPU" in os.environ
    recipe = replace(layout, packed=packed, distributed_optimizer=False).recipe(path)
    recipe = replace(recipe, algorithm=replace(recipe.algorithm, shared_prompts=shared))
    policy = build_policy(recipe)
    rows = own_rows()
    batch = TokenBatch.from_sequences(sequences()).select(rows)
    micro_batches = policy.micro_batches(batch, MICRO_BATCH)
    width = batch.loss_mask.shape[1]
    found: dict[str, Any] = {
        name: torch.zeros(len(rows), width) for name in ("log_probs", "entropy")
    }
    found["hidden"] = torch.zeros(len(rows), width, policy.config.hidden_size)

    def keep_states(states: TappedStates, micro_batch: MicroBatch) -> None:
        places = micro_batch.sequence_index, micro_batch.response_position
        token = states.token
        found["hidden"][places[0][token], places[1][token]] = states.hidden.float()

    scores = policy.score(micro_batches, temperature=tiny.TEMPERATURE, on_hidden_states=keep_states)
    for micro_batch, score in zip(micro_batches if scores else [], scores, strict=True):
        places = micro_batch.sequence_index, micro_batch.response_position
        found["log_probs"][places], found["entropy"][places] = score.log_probs, score.entropy

    # Ranks that share tokens hold others of them where prompts are shared.
    for value in found.values():
        dist.all_reduce(value, group=policy.context_parallel_group)
    if policy.config.sequence_parallel:
        dist.all_reduce(found["hidden"], group=policy.tensor_parallel_group)

    generator = torch.Generator().manual_seed(9)
    factors = torch.randn(9, width, generator=generator)[rows] / 40

    def loss(log_probs: torch.Tensor, entropy: torch.Tensor, micro_batch: MicroBatch) -> Any:
        own = factors[micro_batch.sequence_index, micro_batch.response_position]
        return -(own * log_probs).sum() - 0.01 * entropy.sum() / 40, None

    def keep_gradients(collected: list[Any]) -> None:
        buffers = [buffer for chunk in policy.chunks for buffer in chunk.buffers]
        buffers += [b for chunk in policy.chunks for b in chunk.expert_parallel_buffers]
        found["gradients"] = torch.cat([buffer.grad_data.clone() for buffer in buffers])

    result = policy.update(
        micro_batches,
        loss,
        temperature=tiny.TEMPERATURE,
        entropy_gradient=True,
        before_step=keep_gradients,
    )
    found["grad_norm"] = torch.tensor(result.grad_norm)
    return found, sum(each.tokens.numel() for each in micro_batches)


def difference(own: torch.Tensor, copies: torch.Tensor) -> float:
    """The largest, as a share of the largest number where that is above 1."""
    return float((own - copies).abs().max() / copies.abs().max().clamp_min(1))


def main() -> None:
    models = Path(sys.argv[1])
    layouts = {"default": LAYOUTS, "slow": SLOW_LAYOUTS}[sys.argv[2]]
    for name, layout in layouts[int(os.environ["WORLD_SIZE"])].items():
        begin_layout(layout.recipe(models).parallel, seed=0)
        for family in layout.families:
            own, fed = measure(layout, models / family, "always")
            copies, fed_copies = measure(layout, models / family, "never")
            differences = {key: difference(own[key], copies[key]) for key in own}
            gathered = platform.gather_objects(differences | {"fed": fed / fed_copies})
            found = {key: max(one[key] for one in gathered) for key in gathered[0]}
            if dist.get_rank() == 0:
                print(json.dumps({"layout": name, "family": family, "found": found}))
    platform.shutdown()


if __name__ == "__main__":
    main()
