"""Two ranks: log-probs over a split vocabulary, skipped updates, broken models, bf16.

Argument: folder of the models and their references. Rank 0 prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import tiny_families as tiny
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from megatron_resrl.config.schema import ModelConfig, ParallelConfig, PrecisionConfig, Recipe
from megatron_resrl.platform import distributed as platform
from megatron_resrl.policy.batches import TokenBatch, TokenSequence
from megatron_resrl.policy.log_probs import vocab_parallel_log_probs
from megatron_resrl.rollout.worker import build_policy
from megatron_resrl.weights.hugging_face import export_weights


def recipe(path: Path, dtype: str = "fp32", **parallel: Any) -> Recipe:
    return Recipe(
        model=ModelConfig(path=str(path)),
        parallel=ParallelConfig(**parallel, timeout_minutes=1.0),
        precision=PrecisionConfig(params_dtype=dtype),
    )


def split_vocabulary() -> dict[str, float]:
    """Largest difference from float64 autograd over the whole vocabulary."""
    torch.manual_seed(1)
    hidden, weight = torch.randn(25, 16), torch.randn(tiny.VOCABULARY, 16)
    targets, factors = torch.randint(0, tiny.VOCABULARY, (25,)), torch.randn(25)
    exact_hidden, exact_weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    distribution = (exact_hidden @ exact_weight.T / 0.7).log_softmax(-1)
    exact = distribution.gather(1, targets[:, None])[:, 0]
    (factors * exact).sum().backward()

    rows = -(-tiny.VOCABULARY // 2)
    mine = slice(dist.get_rank() * rows, (dist.get_rank() + 1) * rows)
    shard = torch.zeros(rows, 16)
    shard[: len(weight[mine])] = weight[mine]
    hidden.requires_grad_()
    shard.requires_grad_()
    log_probs, entropy = vocab_parallel_log_probs(
        hidden,
        shard,
        targets,
        vocab_size=tiny.VOCABULARY,
        temperature=0.7,
        group=dist.group.WORLD,
        chunk_tokens=3,
    )
    (factors * log_probs).sum().backward()
    dist.all_reduce(hidden.grad)
    exact_entropy = -(distribution.exp() * distribution).sum(-1)
    pairs = {
        "log_probs": (log_probs, exact),
        "entropy": (entropy, exact_entropy),
        "hidden_gradient": (hidden.grad, exact_hidden.grad),
        "weight_gradient": (shard.grad[: len(weight[mine])], exact_weight.grad[mine]),
        "padding_gradient": (shard.grad[len(weight[mine]) :], torch.zeros(())),
    }
    return {name: worst(ours, theirs) for name, (ours, theirs) in pairs.items()}


def worst(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    difference = (ours - theirs).abs()
    mine = difference.max().item() if difference.numel() else 0.0
    return max(platform.gather_objects(mine))


def sequences() -> list[TokenSequence]:
    return [TokenSequence(*pair) for pair in tiny.ragged_token_ids()]


def one_bad_gradient(path: Path) -> dict[str, Any]:
    """An update where only one rank's loss is NaN, and then a good one."""
    settings = recipe(path)
    platform.initialize(settings.parallel, seed=0)
    policy = build_policy(settings)
    before = dict(export_weights(policy.modules, policy.hf_config))
    before = {name: tensor.clone() for name, tensor in before.items()}
    batches = policy.micro_batches(TokenBatch.from_sequences(sequences()), 3)

    def loss(factor: float) -> Any:
        return lambda log_probs, entropy, batch: (-factor * log_probs.sum() / 100, None)

    bad = policy.update(batches, loss(float("nan") if dist.get_rank() == 1 else 1.0))
    after = dict(export_weights(policy.modules, policy.hf_config))
    unchanged = all(torch.equal(after[name], before[name]) for name in before)
    good = policy.update(batches, loss(1.0))
    mine = {
        "skipped": not bad.applied and bad.grad_norm != bad.grad_norm,
        "unchanged": unchanged,
        "recovers": good.applied and good.grad_norm > 0,
    }
    return {name: all(rank[name] for rank in platform.gather_objects(mine)) for name in mine}


def broken_model(path: Path, **parallel: Any) -> list[str]:
    """What each rank says of a model that lacks a tensor of the first pipeline stage."""
    broken = path.parent / f"broken_{path.name}"
    if dist.get_rank() == 0:
        broken.mkdir(exist_ok=True)
        (broken / "config.json").write_text((path / "config.json").read_text())
        tensors = load_file(path / "model.safetensors")
        del tensors["model.layers.0.mlp.up_proj.weight"]
        save_file(tensors, broken / "model.safetensors")
    dist.barrier()
    settings = recipe(broken, **parallel)
    platform.initialize(settings.parallel, seed=0)
    try:
        build_policy(settings)
    except ValueError as error:
        return platform.gather_objects(str(error))
    return platform.gather_objects("no error")


def bf16(path: Path, want: tiny.Reference) -> dict[str, float]:
    """Log-probs and gradient norm in bf16 against the fp32 reference."""
    settings = recipe(path, "bf16", tensor_model_parallel_size=2, sequence_parallel=True)
    platform.initialize(settings.parallel, seed=0)
    policy = build_policy(settings)
    (batch,) = policy.micro_batches(TokenBatch.from_sequences(sequences()), 6)
    (scores,) = policy.score([batch], temperature=tiny.TEMPERATURE)
    factors = tiny.loss_coefficients()[batch.sequence_index, batch.response_position]
    result = policy.update(
        [batch],
        lambda log_probs, entropy, batch: (-(factors * log_probs).sum(), None),
        temperature=tiny.TEMPERATURE,
    )
    return {
        "log_probs": (scores.log_probs - torch.cat(want.log_probs)).abs().mean().item(),
        "grad_norm": abs(result.grad_norm / want.grad_norms[0] - 1),
    }


def main() -> None:
    models = Path(sys.argv[1])
    references = torch.load(models / "references.pt", weights_only=False)
    platform.initialize(ParallelConfig(timeout_minutes=1.0), seed=0)
    found = {
        "split_vocabulary": split_vocabulary(),
        "one_bad_gradient": one_bad_gradient(models / "llama_tied"),
        "broken_tp2": broken_model(models / "qwen2", tensor_model_parallel_size=2),
        "broken_pp2": broken_model(models / "llama", pipeline_model_parallel_size=2),
        "bf16": bf16(models / "qwen3", references["qwen3"]),
    }
    if dist.get_rank() == 0:
        print(json.dumps({"found": found}))
    platform.shutdown()


if __name__ == "__main__":
    main()
