"""Taps every hidden state in every layout of this world size and compares with transformers.

Argument: folder of the models. Rank 0 prints one line of JSON per layout: the largest difference
of each entry of `hidden_states`, by its index.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

import tiny_families as tiny
import torch
import torch.distributed as dist
from layouts import begin_layout
from megatron.core import parallel_state
from ranks_parity import ONE_AND_THREE, THREE_AND_ONE, Layout, largest
from transformers import AutoModelForCausalLM

from megatron_resrl.platform import distributed as platform
from megatron_resrl.policy.batches import MicroBatch, TokenBatch, TokenSequence
from megatron_resrl.policy.policy import Policy
from megatron_resrl.policy.results import TappedStates
from megatron_resrl.rollout.worker import build_policy

NONE_LAST = {"megatron": {"pipeline_model_parallel_layout": "Etttt|L"}}
LAYOUTS: dict[int, dict[str, Layout]] = {
    1: {"pp1": Layout(), "pp1_packed": Layout(packed=True)},
    2: {
        "pp2_three_and_one": Layout(pp=2, model=THREE_AND_ONE),
        "pp2_one_and_three": Layout(pp=2, model=ONE_AND_THREE),
        "pp2_four_and_none": Layout(pp=2, model=NONE_LAST),
        "pp2_vpp2": Layout(pp=2, vpp=2),
        "tp2_sp": Layout(tp=2, sp=True),
        "cp2": Layout(cp=2),
    },
}


def hidden_states(path: Path) -> list[list[torch.Tensor]]:
    """[entry][sequence] the states [response, H] that predict each response."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    per_sequence = []
    for prompt, response in tiny.ragged_token_ids():
        with torch.no_grad():
            output = model(torch.tensor([prompt + response])[:, :-1], output_hidden_states=True)
        per_sequence.append([states[0, len(prompt) - 1 :] for states in output.hidden_states])
    return [list(entry) for entry in zip(*per_sequence, strict=True)]


def tap(policy: Policy, layer: int, want: list[torch.Tensor]) -> float:
    """Largest difference of one entry; infinite if tokens are missing or taken twice."""
    sequences = [TokenSequence(*pair) for pair in tiny.ragged_token_ids()]
    batches = policy.micro_batches(TokenBatch.from_sequences(sequences), 2)
    tapped: list[tuple[int, int, torch.Tensor]] = []
    order: list[range] = []

    def take(states: TappedStates, batch: MicroBatch) -> None:
        assert states.token.device.type == "cpu"
        sequence = batch.host.sequence_index[states.token].tolist()
        position = batch.host.response_position[states.token].tolist()
        tapped.extend(zip(sequence, position, states.hidden, strict=True))
        order.append(batch.sequences)

    policy.score(batches, on_hidden_states=take, layer=layer)
    stage = parallel_state.get_pipeline_model_parallel_rank()
    holds = policy.tap_stage(layer) == stage
    assert holds == policy.holds_tap(layer) == bool(order)
    assert order == ([batch.sequences for batch in batches] if holds else [])
    # No layout here has tensor-parallel ranks with copies of tokens.
    group = parallel_state.get_tensor_and_context_parallel_group()
    per_rank = platform.gather_objects(tapped, group)
    everything = list(itertools.chain.from_iterable(per_rank))
    places = sorted((sequence, position) for sequence, position, _ in everything)
    expected = [(s, p) for s, states in enumerate(want) for p in range(len(states))]
    if holds and places != expected:
        return float("inf")
    return largest(*(hidden - want[s][p] for s, p, hidden in everything))


def refusal(policy: Policy) -> str:
    """What is said of a layer that the model does not have; the same on every rank."""
    try:
        policy.tap_stage(policy.config.num_layers + 1)
    except ValueError as error:
        return str(error)
    return "nothing"


def main() -> None:
    path = Path(sys.argv[1]) / "qwen3"
    want = hidden_states(path)
    count = len(want)
    for name, layout in LAYOUTS[int(os.environ["WORLD_SIZE"])].items():
        recipe = layout.recipe(path)
        begin_layout(recipe.parallel, seed=0)
        policy = build_policy(recipe, trainable=False)
        found: dict[str, Any] = {
            str(layer): tap(policy, layer, want[layer]) for layer in (*range(count), -1, -2, -count)
        }
        found = {
            layer: max(rank[layer] for rank in platform.gather_objects(found)) for layer in found
        }
        stages = [policy.tap_stage(layer) for layer in range(count)]
        line = {"layout": name, "found": found, "stages": stages, "refusal": refusal(policy)}
        if dist.get_rank() == 0:
            print(json.dumps(line))
    platform.shutdown()


if __name__ == "__main__":
    main()
