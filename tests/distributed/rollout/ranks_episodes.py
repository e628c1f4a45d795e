"""Every rank: plays episodes with each layout of this world size; rank 0 prints what came.

Arguments: folder of the model, file of the environments.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import tiny_families as tiny
import torch
import torch.distributed as dist
from layouts import begin_layout
from tokenizers.pre_tokenizers import WhitespaceSplit

from megatron_resrl.config.schema import (
    DataConfig,
    ModelConfig,
    ParallelConfig,
    PrecisionConfig,
    Recipe,
)
from megatron_resrl.data.prompts import Prompt, PromptRecord
from megatron_resrl.platform.distributed import shutdown
from megatron_resrl.policy.batches import TokenBatch, TokenSequence
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.engine import GenerationRequest, Response, SamplingParams
from megatron_resrl.rollout.engines.megatron import MegatronEngine
from megatron_resrl.rollout.environments.chat import ObservationTokens
from megatron_resrl.rollout.environments.episodes import EpisodeEngine, EpisodeSettings
from megatron_resrl.rollout.environments.opening import opening_encoder
from megatron_resrl.rollout.environments.registry import get_environment
from megatron_resrl.rollout.environments.running import EnvironmentFailed
from megatron_resrl.rollout.environments.seats import LocalSeats
from megatron_resrl.rollout.worker import build_policy

LAYOUTS = {
    1: {"one": {}},
    2: {
        "TP2": {"tensor_model_parallel_size": 2},
        "PP2": {"pipeline_model_parallel_size": 2},
        "DP2": {},
        "CP2": {"context_parallel_size": 2},
    },
}
SAMPLING = SamplingParams(24, tuple(range(40)), n=3)
MAX_TURNS = 4
PROMPTS = [
    Prompt(PromptRecord(index, [{"role": "user", "content": ""}], str(index), "test", {}), ids)
    for index, ids in enumerate([(3, 4, 5), (50, 51), tuple(range(60, 75)), (9,)])
]


def plain(responses: list[list[Response]]) -> list:
    return [
        [
            [list(each.token_ids), list(each.response_mask or ()), each.finish_reason, each.score]
            for each in several
        ]
        for several in responses
    ]


def log_prob_difference(policy: Policy, responses: list[list[Response]]) -> float:
    """Largest difference of the engine's log-probs of drawn tokens from the trainer's."""
    flat = [(prompt, r) for prompt, rs in zip(PROMPTS, responses, strict=True) for r in rs]
    sequences = [TokenSequence(p.token_ids, r.token_ids, r.response_mask) for p, r in flat]
    batches = policy.micro_batches(TokenBatch.from_sequences(sequences), 4)
    scores = policy.score(batches)
    worst = torch.zeros(())
    for batch, score in zip(batches if scores else [], scores, strict=True):
        places = zip(batch.sequence_index.tolist(), batch.response_position.tolist(), strict=True)
        engines = torch.tensor([flat[n][1].log_probs[position] for n, position in places])
        if len(engines):
            worst = torch.maximum(worst, (score.log_probs - engines).abs().max())
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    return float(worst)


def failure(engine: EpisodeEngine) -> str:
    try:
        engine.generate(GenerationRequest.of_prompts(PROMPTS, SAMPLING, (0, 1)))
    except EnvironmentFailed as error:
        return str(error)
    return "none"


def play(model: Path, environments: Path, layout: dict) -> dict:
    recipe = Recipe(
        model=ModelConfig(path=str(model)),
        precision=PrecisionConfig("fp32"),
        parallel=ParallelConfig(**layout, timeout_minutes=1.0),
    )
    begin_layout(recipe.parallel, 0)
    policy = build_policy(recipe, trainable=False)
    engine = MegatronEngine(policy, max_running_samples=6)
    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = WhitespaceSplit()
    observations = ObservationTokens(tokenizer, "user", apply_chat_template=False)

    def episodes(name: str) -> EpisodeEngine:
        make = get_environment(f"{environments}:{name}", {})
        return EpisodeEngine(
            engine,
            LocalSeats(make, timeout_s=5.0),
            tokenizer,
            observations,
            opening_encoder(tokenizer, DataConfig(apply_chat_template=False)),
            EpisodeSettings(name, MAX_TURNS, patience_s=60.0, on_failure="stop"),
        )

    reported: list[int] = []
    request = GenerationRequest.of_prompts(PROMPTS, SAMPLING, (0, 1))
    counted = replace(request, on_group=lambda place, _: reported.append(place))
    responses = episodes("Counting").generate(counted)
    alone = episodes("Counting").generate(request.select([2], None))
    failures: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(failures, failure(episodes("Broken")))
    return {
        "responses": plain(responses),
        "alone": plain(alone),
        "reported": reported,
        "difference": log_prob_difference(policy, responses),
        "failures": failures,
    }


def main() -> None:
    model, environments = map(Path, sys.argv[1:])
    for name, layout in LAYOUTS[int(os.environ["WORLD_SIZE"])].items():
        found = play(model, environments, layout)
        if dist.get_rank() == 0:
            print(json.dumps({"layout": name, "found": found}))
    shutdown()


if __name__ == "__main__":
    main()
