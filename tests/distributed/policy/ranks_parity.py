"""Measures the policy against the reference in every layout of this world size.

Arguments: folder of the models and their references, in which some layouts also save to `saved`;
`default` or `slow`, the layouts that are measured.
Rank 0 prints one line of JSON per layout and family: what differs, and by how much at most on
any rank.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import tiny_families as tiny
import torch
import torch.distributed as dist
from layouts import begin_layout
from megatron.core import parallel_state
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region

from megatron_resrl.config.schema import (
    AlgorithmConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PrecisionConfig,
    Recipe,
)
from megatron_resrl.platform import distributed as platform
from megatron_resrl.policy.batches import MicroBatch, TokenBatch, TokenSequence
from megatron_resrl.policy.hidden_states import HiddenStateLocations, response_states
from megatron_resrl.policy.policy import Policy
from megatron_resrl.policy.results import TappedStates
from megatron_resrl.policy.schedule import is_last_stage, run_pipeline
from megatron_resrl.rollout.worker import build_policy
from megatron_resrl.weights import hugging_face

FULL = {"recompute_granularity": "full"}
UNIFORM = FULL | {"recompute_num_layers": 1, "recompute_method": "uniform"}
BLOCK = {**UNIFORM, "recompute_num_layers": 2, "recompute_method": "block"}
OVERLAPPED = {"overlap_grad_reduce": True, "overlap_param_gather": True}
SELECTIVE = {"recompute_granularity": "selective"}
THREE_AND_ONE = {"megatron": {"num_layers_in_first_pipeline_stage": 3}}
ONE_AND_THREE = {"megatron": {"num_layers_in_first_pipeline_stage": 1}}
DENSE = ("llama", "llama_tied", "qwen2", "qwen3")
"""Mistral and Gemma 3 run once in each kind of layout."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Sizes and options that must not change any number."""

    tp: int = 1
    pp: int = 1
    vpp: int | None = None
    cp: int = 1
    ep: int = 1
    etp: int | None = None
    sp: bool = False
    packed: bool = False
    distributed_optimizer: bool = True
    ddp: dict[str, Any] = dataclasses.field(default_factory=dict)
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    saves: bool = False
    families: tuple[str, ...] = DENSE
    dtype: str = "fp32"

    def recipe(self, path: Path) -> Recipe:
        parallel = ParallelConfig(
            tensor_model_parallel_size=self.tp,
            pipeline_model_parallel_size=self.pp,
            virtual_pipeline_model_parallel_size=self.vpp,
            context_parallel_size=self.cp,
            expert_model_parallel_size=self.ep,
            expert_tensor_parallel_size=self.etp,
            sequence_parallel=self.sp,
            use_distributed_optimizer=self.distributed_optimizer,
            timeout_minutes=1.0,
            ddp=self.ddp,
        )
        optimizer = OptimizerConfig(
            lr=tiny.LEARNING_RATE,
            lr_warmup_steps=0,
            weight_decay=tiny.WEIGHT_DECAY,
            adam_eps=tiny.ADAM_EPS,
            clip_grad=tiny.CLIP_GRAD,
        )
        return Recipe(
            model=ModelConfig(path=str(path), **self.model),
            parallel=parallel,
            precision=PrecisionConfig(params_dtype=self.dtype),
            optimizer=optimizer,
            algorithm=AlgorithmConfig(sequence_packing=self.packed),
        )


ONE = ("qwen3",)
TIED_AND_BIAS = ("llama_tied", "qwen2")
TIED_AND_NORMED = ("llama_tied", "qwen3")
ALL_DENSE = (*DENSE, "mistral", "gemma3")
EXPERTS = ("qwen3_moe", "qwen3_moe_mixed", "mixtral")
MOE = ("qwen3_moe",)
WINDOWED = ("qwen3_windowed", "mixtral_windowed")
LAYOUTS: dict[int, dict[str, Layout]] = {
    1: {
        "tp1": Layout(families=ALL_DENSE),
        "tp1_experts": Layout(families=EXPERTS),
        "tp1_experts_recompute_uniform": Layout(model=UNIFORM, families=MOE),
        "tp1_plain_optimizer": Layout(distributed_optimizer=False, families=TIED_AND_BIAS),
        "tp1_recompute_uniform": Layout(model=UNIFORM, families=ONE),
        "tp1_recompute_block": Layout(model=BLOCK, families=ONE),
        "tp1_recompute_selective": Layout(model=SELECTIVE, families=ONE),
        "tp1_windowed": Layout(families=WINDOWED),
        "tp1_packed": Layout(packed=True, families=("llama", "qwen3", "gemma3", *WINDOWED)),
        "tp1_packed_recompute_uniform": Layout(packed=True, model=UNIFORM, families=ONE),
    },
    2: {
        "tp2": Layout(tp=2, families=TIED_AND_BIAS),
        "tp2_sp": Layout(tp=2, sp=True, families=ALL_DENSE),
        "pp2": Layout(pp=2, saves=True, families=ALL_DENSE),
        "pp2_vpp2": Layout(pp=2, vpp=2, families=TIED_AND_NORMED),
        "dp2": Layout(families=TIED_AND_NORMED),
        "dp2_plain_optimizer": Layout(distributed_optimizer=False, families=ONE),
        "dp2_overlapped": Layout(ddp=OVERLAPPED, families=TIED_AND_NORMED),
        "tp2_sp_recompute_uniform": Layout(tp=2, sp=True, model=UNIFORM, families=ONE),
        "pp2_recompute_block": Layout(pp=2, model=BLOCK, families=ONE),
        "pp2_three_and_one": Layout(pp=2, model=THREE_AND_ONE, families=ONE),
        "tp2_sp_packed": Layout(tp=2, sp=True, packed=True, families=ONE),
        "pp2_packed": Layout(pp=2, packed=True, families=ONE),
        "tp2_sp_windowed": Layout(tp=2, sp=True, families=WINDOWED),
        "cp2": Layout(cp=2, families=("llama", "qwen3", "mistral", "mixtral", "gemma3")),
        "cp2_packed": Layout(cp=2, packed=True, families=("qwen3", "gemma3", *WINDOWED)),
        "tp2_sp_etp2": Layout(tp=2, sp=True, families=("qwen3_moe", "mixtral")),
        "pp2_experts": Layout(pp=2, families=("mixtral",)),
        "tp2_sp_ep2": Layout(tp=2, sp=True, ep=2, etp=1, saves=True, families=EXPERTS),
        "dp2_ep2": Layout(ep=2, families=EXPERTS),
        "dp2_ep2_plain_optimizer": Layout(ep=2, distributed_optimizer=False, families=MOE),
    },
    4: {
        "tp2_pp2_sp": Layout(tp=2, pp=2, sp=True, families=("llama_tied",)),
        "tp4_sp": Layout(tp=4, sp=True, families=("qwen2",)),
        "cp2_tp2_sp_packed": Layout(cp=2, tp=2, sp=True, packed=True, families=ONE),
        "cp2_pp2_vpp2_packed": Layout(cp=2, pp=2, vpp=2, packed=True, families=ONE),
        "tp2_pp2_sp_ep2": Layout(
            tp=2, pp=2, sp=True, ep=2, etp=1, families=("qwen3_moe_mixed", "mixtral")
        ),
        "tp2_dp2_sp_ep4": Layout(tp=2, sp=True, ep=4, etp=1, families=MOE),
    },
}
SLOW_LAYOUTS: dict[int, dict[str, Layout]] = {
    2: {
        "tp2": Layout(tp=2, families=("llama", "qwen3")),
        "pp2_vpp2": Layout(pp=2, vpp=2, families=("llama", "qwen2")),
        "dp2": Layout(families=("llama", "qwen2")),
        "dp2_overlapped": Layout(ddp=OVERLAPPED, families=("llama", "qwen2")),
        "pp2_vpp2_overlapped": Layout(pp=2, vpp=2, ddp=OVERLAPPED, families=ONE),
        "pp2_recompute_selective": Layout(pp=2, model=SELECTIVE, families=ONE),
        "pp2_one_and_three": Layout(pp=2, model=ONE_AND_THREE, families=ONE),
        "pp2_vpp2_packed": Layout(pp=2, vpp=2, packed=True, families=("llama_tied",)),
        "cp2_packed": Layout(cp=2, packed=True, families=("llama",)),
        "cp2_packed_recompute_selective": Layout(cp=2, packed=True, model=SELECTIVE, families=ONE),
        "dp2_ep2_overlapped": Layout(ep=2, ddp=OVERLAPPED, families=MOE),
    },
    4: {
        "tp2_pp2": Layout(tp=2, pp=2, families=ALL_DENSE),
        "tp2_pp2_sp": Layout(tp=2, pp=2, sp=True, families=("llama", "qwen2", "qwen3")),
        "tp2_pp2_vpp2_sp": Layout(tp=2, pp=2, vpp=2, sp=True, families=ONE),
        "tp2_dp2_sp": Layout(tp=2, sp=True, families=("qwen2",)),
        "pp2_dp2": Layout(pp=2, families=("llama_tied",)),
        "pp4": Layout(pp=4, families=("llama",)),
        "cp2_tp2_sp": Layout(cp=2, tp=2, sp=True, families=ONE),
        "cp2_pp2": Layout(cp=2, pp=2, families=("llama_tied",)),
        "cp2_dp2_packed": Layout(cp=2, packed=True, families=ONE),
        "cp4": Layout(cp=4, families=ONE),
        "tp2_pp2_sp_ep2": Layout(tp=2, pp=2, sp=True, ep=2, etp=1, families=MOE),
        "tp2_dp2_sp_ep2": Layout(tp=2, sp=True, ep=2, etp=1, families=MOE),
        "pp2_vpp2_dp2_ep2": Layout(pp=2, vpp=2, ep=2, families=MOE),
    },
}


def own_share() -> list[int]:
    """Indices of the sequences of this data-parallel replica: all, or the first four or last two.

    Replicas with unequal numbers of micro-batches must agree too.
    """
    indices = list(range(len(tiny.ragged_token_ids())))
    if parallel_state.get_data_parallel_world_size() == 1:
        return indices
    return indices[:4] if parallel_state.get_data_parallel_rank() == 0 else indices[4:]


def largest(*differences: torch.Tensor) -> float:
    return max((d.abs().max().item() for d in differences if d.numel()), default=0.0)


def score_differences(policy: Policy, batches: list[MicroBatch], want: dict[str, Any]) -> dict:
    """Log-probs, entropy and tapped states of every response token."""
    found = {"log_probs": 0.0, "entropy": 0.0, "hidden": 0.0}
    tapped = []

    def check_states(states: TappedStates, batch: MicroBatch) -> None:
        tapped.append(len(states.token))
        difference = hidden_difference(policy, states, rows(batch, want["hidden"]))
        found["hidden"] = max(found["hidden"], difference)

    scores = policy.score(batches, temperature=tiny.TEMPERATURE, on_hidden_states=check_states)
    assert len(scores) == (len(batches) if is_last_stage() else 0)
    assert len(tapped) == (len(batches) if policy.holds_tap(-2) else 0)
    assert_shared_out(policy, batches, want["log_probs"])
    for batch, score in zip(batches if scores else [], scores, strict=True):
        for name in ("log_probs", "entropy"):
            difference = getattr(score, name).cpu() - rows(batch, want[name])
            found[name] = max(found[name], largest(difference))
    return found


def assert_shared_out(
    policy: Policy, batches: list[MicroBatch], per_sequence: list[torch.Tensor]
) -> None:
    """Every response token must be on exactly one context-parallel rank."""
    own = [
        place
        for batch in batches
        for place in zip(
            batch.sequence_index.tolist(), batch.response_position.tolist(), strict=True
        )
    ]
    per_rank = platform.gather_objects(own, policy.context_parallel_group)
    places = sorted(itertools.chain.from_iterable(per_rank))
    assert places == [
        (sequence, position)
        for sequence, values in enumerate(per_sequence)
        for position in range(len(values))
    ]


def hidden_difference(policy: Policy, states: TappedStates, want: torch.Tensor) -> float:
    """Puts the tensor-parallel ranks' slices together; every token must be in exactly one."""
    slices = platform.gather_objects(states, policy.tensor_parallel_group)
    if not policy.config.sequence_parallel:
        slices = slices[:1]
    token = torch.cat([part.token for part in slices])
    assert sorted(token.tolist()) == list(range(len(want))), token
    hidden = torch.cat([part.hidden.float().cpu() for part in slices])
    return largest(hidden[token.argsort()] - want)


def rows(batch: MicroBatch, per_sequence: list[torch.Tensor]) -> torch.Tensor:
    """Reference values of a micro-batch's response tokens."""
    pairs = zip(batch.sequence_index.tolist(), batch.response_position.tolist(), strict=True)
    picked = [per_sequence[sequence][position] for sequence, position in pairs]
    return torch.stack(picked) if picked else per_sequence[0][:0]


def logit_difference(policy: Policy, batches: list[MicroBatch], want: list[torch.Tensor]) -> float:
    """Full logits, put together from all tensor-parallel ranks, at every real input position."""
    differences = []

    def last_stage(hidden: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, None]:
        if policy.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden)
        shard = policy.modules[-1].output_weight().detach()
        shards = platform.gather_objects(shard, policy.tensor_parallel_group)
        logits = (hidden @ torch.cat(shards).T)[..., : tiny.VOCABULARY].float().cpu()
        for row, sequence in enumerate(batch.sequence_index.unique().tolist()):
            differences.append(logits[: len(want[sequence]), row] - want[sequence])
        return hidden.sum(), None

    policy.eval()
    run_pipeline(policy.modules, batches, last_stage, forward_only=True)
    return largest(*differences)


def update_differences(
    policy: Policy, batches: list[MicroBatch], mine: list[int], want: tiny.Reference, step: int
) -> dict:
    """One step, with the tap on: recomputation runs layers again and must not disturb it."""
    coefficients = tiny.loss_coefficients()[mine]
    hidden_want = [want.hidden[index] for index in mine]
    found, attention_runs = {"hidden": 0.0}, []

    def loss_function(log_probs: torch.Tensor, entropy: torch.Tensor, batch: MicroBatch) -> Any:
        if step == 0:
            states = response_states(tap.take(), batch, policy.config.sequence_parallel)
            difference = hidden_difference(policy, states, rows(batch, hidden_want))
            found["hidden"] = max(found["hidden"], difference)
        factors = coefficients[batch.host.sequence_index, batch.host.response_position]
        loss = -(factors.to(log_probs.device) * log_probs).sum()
        return loss, loss.item()

    attention = policy.modules[-1].decoder.layers[0].self_attention.core_attention
    counter = attention.register_forward_hook(lambda *_: attention_runs.append(1))
    places = HiddenStateLocations(policy.modules, policy.config.num_layers)
    # The penultimate state is an input of the last layer, and this loss runs on the last stage.
    with places.tap(-2) if is_last_stage() else nullcontext() as tap:
        result = policy.update(batches, loss_function, temperature=tiny.TEMPERATURE)
    counter.remove()
    assert result.applied
    assert len(result.collected) == (len(batches) if is_last_stage() else 0)
    share = sum(result.collected) if parallel_state.get_tensor_model_parallel_rank() == 0 else 0
    loss = sum(platform.gather_objects(share))
    return found | {
        "loss": abs(loss / want.losses[step] - 1),
        "grad_norm": abs(result.grad_norm / want.grad_norms[step] - 1),
        "attention_runs": len(attention_runs) / len(batches),
    }


def export_difference(policy: Policy, want: dict[str, torch.Tensor]) -> float:
    """Exported tensors on every rank; infinite where a name or a shape is wrong."""
    exported = dict(hugging_face.export_weights(policy.modules, policy.hf_config))
    shapes = {name: tensor.shape for name, tensor in exported.items()}
    if shapes != {name: tensor.shape for name, tensor in want.items()}:
        return float("inf")
    return largest(*(exported[name].cpu() - want[name] for name in want))


def save(policy: Policy, directory: Path) -> None:
    """In several files for one of the families."""
    hugging_face.SHARD_BYTES = 60_000 if directory.name == "qwen3" else 10**9
    hugging_face.save_hf_model(policy.modules, policy.hf_config, directory)


def measure(layout: Layout, path: Path, want: tiny.Reference) -> dict[str, float]:
    policy = build_policy(layout.recipe(path))
    mine = own_share()
    pairs = tiny.ragged_token_ids()
    sequences = [TokenSequence(*pairs[index]) for index in mine]
    batches = policy.micro_batches(TokenBatch.from_sequences(sequences), 2)
    own = {
        name: [getattr(want, name)[index] for index in mine]
        for name in ("log_probs", "entropy", "hidden", "logits")
    }
    found = score_differences(policy, batches, own)
    if not layout.packed and layout.cp == 1:
        found["logits"] = logit_difference(policy, batches, own["logits"])
    found["exported"] = export_difference(policy, want.weights[0])
    if layout.saves:
        save(policy, path.parent / "saved" / path.name)
    for step, micro_batch_size in enumerate((2, 1)):
        batches = policy.micro_batches(TokenBatch.from_sequences(sequences), micro_batch_size)
        differences = update_differences(policy, batches, mine, want, step)
        differences["weights"] = export_difference(policy, want.weights[step + 1])
        found |= {f"step_{step}_{name}": value for name, value in differences.items()}
    gathered = platform.gather_objects(found)
    return {name: max(one[name] for one in gathered) for name in found}


def main() -> None:
    models = Path(sys.argv[1])
    references = torch.load(models / "references.pt", weights_only=False)
    layouts = {"default": LAYOUTS, "slow": SLOW_LAYOUTS}[sys.argv[2]]
    for name, layout in layouts[int(os.environ["WORLD_SIZE"])].items():
        begin_layout(layout.recipe(models).parallel, seed=0)
        for family in layout.families:
            found = measure(layout, models / family, references[family])
            if dist.get_rank() == 0:
                print(json.dumps({"layout": name, "family": family, "found": found}))
    platform.shutdown()


if __name__ == "__main__":
    main()
