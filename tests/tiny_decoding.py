"""What the embedded engine decodes with a tiny model, and what transformers' `generate` does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from layouts import begin_layout
from tiny_families import read_model

from megatron_resrl.config.schema import ModelConfig, ParallelConfig, PrecisionConfig, Recipe
from megatron_resrl.platform.distributed import device
from megatron_resrl.policy.batches import TokenBatch, TokenSequence
from megatron_resrl.rollout.engine import GenerationRequest, SamplingParams
from megatron_resrl.rollout.engines.megatron import MegatronEngine
from megatron_resrl.rollout.worker import build_policy

PROMPTS = [[3, 4, 5, 6, 7, 8], [9, 10], list(range(20, 41)), [5] * 4, [50, 51]]
NEW_TOKENS = 14
STOP = (1, 2, 3, 4, 5, 6, 7, 8)


def greedy_reference(path: Path) -> list[list[int]]:
    """What transformers' `generate` answers, one prompt at a time."""
    model = read_model(path)
    answers = []
    for prompt in PROMPTS:
        output = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=list(STOP),
            pad_token_id=0,
        )
        answers.append(output[0, len(prompt) :].tolist())
    return answers


def decode(path: Path, layout: dict) -> dict:
    """Greedy and sampled responses, and how far the trainer's log-probs are from the engine's.

    Args:
        path: The model.
        layout: Fields of `ParallelConfig`; the process group exists.
    """
    recipe = Recipe(
        model=ModelConfig(path=str(path)),
        precision=PrecisionConfig("fp32"),
        parallel=ParallelConfig(**layout),
    )
    begin_layout(recipe.parallel, 0)
    policy = build_policy(recipe, trainable=False)
    engine = MegatronEngine(policy, max_running_samples=6)
    greedy = SamplingParams(NEW_TOKENS, STOP, n=2, temperature=0)
    sampled = replace(greedy, n=3, temperature=1.0)
    answers = engine.generate(GenerationRequest(PROMPTS, greedy, seed=(0,)))
    # Fewer prompts than replicas.
    alone = engine.generate(GenerationRequest(PROMPTS[:1], greedy, seed=(0,)))
    responses = engine.generate(GenerationRequest(PROMPTS, sampled, seed=(0, 5)))
    sequences = [
        TokenSequence(tuple(prompt), response.token_ids)
        for prompt, several in zip(PROMPTS, responses, strict=True)
        for response in several
    ]
    flat = [response for several in responses for response in several]
    batches = policy.micro_batches(TokenBatch.from_sequences(sequences), 4)
    scores = policy.score(batches)
    difference = 0.0
    for batch, score in zip(batches if scores else [], scores, strict=True):
        places = zip(batch.sequence_index.tolist(), batch.response_position.tolist(), strict=True)
        engines = torch.tensor([flat[number].log_probs[position] for number, position in places])
        difference = max([difference, *(score.log_probs.cpu() - engines).abs().tolist()])
    # A length that was scored is decoded again, whatever has been cached for it.
    as_long_as_decoded = TokenSequence(tuple(PROMPTS[0]), (9,) * (NEW_TOKENS + 1))
    policy.score(policy.micro_batches(TokenBatch.from_sequences([as_long_as_decoded]), 1))
    again = engine.generate(GenerationRequest(PROMPTS, sampled, seed=(0, 5)))
    worst = torch.tensor(difference, device=device())
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    return {
        "greedy": [[list(response.token_ids) for response in several] for several in answers],
        "alone": [list(response.token_ids) for response in alone[0]],
        "sampled": [list(response.token_ids) for response in flat],
        "repeated": [list(response.token_ids) for several in again for response in several],
        "reasons": [response.finish_reason for response in flat],
        "difference": worst.item(),
    }
