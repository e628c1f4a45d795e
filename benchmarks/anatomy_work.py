"""What a process of `step_anatomy.py` measures: a step, or decoding."""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from megatron.core.transformer.moe.experts import SequentialMLP
from roofline import memory_rate, product_rate, products_seconds
from torch.utils.flop_counter import FlopCounterMode

from megatron_resrl.config import schema
from megatron_resrl.data.prompts import Prompt, PromptRecord
from megatron_resrl.diagnostics.standard import standard_observers
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.platform.distributed import process_groups
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.batch import RolloutBatch
from megatron_resrl.rollout.collect import Sample
from megatron_resrl.rollout.engine import GenerationRequest, Response, SamplingParams
from megatron_resrl.rollout.engines.megatron import MegatronEngine
from megatron_resrl.rollout.worker import build_policy
from megatron_resrl.token_weighting.factory import build_weighting
from megatron_resrl.training.algorithm import algorithm_of, weighting_of
from megatron_resrl.training.rl_step import StepSettings, rl_step
from megatron_resrl.training.single_pass import takes_single_pass

PHASES = ("scoring", "subspace", "update", "other")
_ATEN = torch.ops.aten


def attention_operations(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *rest: Any, **_: Any
) -> int:
    """Of the two products of attention on a CPU, from the shapes [b, heads, tokens, size]."""
    rows, heads, queries, size = query
    is_causal = len(rest) > 1 and rest[1]
    pairs = queries * key[2] / (2 if is_causal else 1)
    return int(2 * rows * heads * pairs * (size + value[3]))


def attention_backward_operations(
    _: Any, query: Any, key: Any, value: Any, __: Any, ___: Any, *rest: Any, **____: Any
) -> int:
    """Five products instead of two: the scores are made again."""
    return attention_operations(query, key, value, *rest) * 5 // 2


FORMULAS = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: attention_operations,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_operations,
}


class Counted(PhaseTimers):
    """Operations, and tokens that enter the layers, by phase."""

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self._counter = counter
        self._read = 0

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """See `PhaseTimers.phase`."""
        self._account_operations()
        with super().phase(name):
            try:
                yield
            finally:
                self._account_operations()

    def count_tokens(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A hook before the layers' forward pass."""
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        self.tokens[self.current_phase()] += hidden.shape[0] * hidden.shape[1]

    def _account_operations(self) -> None:
        found = self._counter.get_total_flops()
        self.operations[self.current_phase()] += found - self._read
        self._read = found


def recorded_groups(options: argparse.Namespace, vocabulary: int) -> list[Sample]:
    """Random tokens; in each group every second response is right."""
    draw = torch.Generator().manual_seed(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(vocabulary, (count,), generator=draw).tolist())

    samples = []
    longest = options.response_tokens
    for group in range(options.prompts):
        record = PromptRecord(group, [{"role": "user", "content": ""}], "", "", {})
        prompt = Prompt(record, tokens(options.prompt_tokens))
        for number in range(options.group_size):
            count = int(torch.randint(longest // 2, longest + 1, (1,), generator=draw))
            response = Response(tokens(count), (-10.0,) * count, "length")
            score = float(number % 2)
            samples.append(Sample(group, prompt, response, "", score, score, False))
    return samples


def recipe_of(options: argparse.Namespace) -> schema.Recipe:
    """The recipe of a case."""
    return schema.Recipe(
        model=schema.ModelConfig(str(options.model)),
        precision=schema.PrecisionConfig("fp32"),
        optimizer=schema.OptimizerConfig(lr_warmup_steps=0),
        algorithm=schema.AlgorithmConfig(**json.loads(options.settings)),
        rollout=schema.RolloutConfig(
            prompts_per_step=options.prompts,
            group_size=options.group_size,
            max_response_length=options.response_tokens,
        ),
    )


def measure_step(options: argparse.Namespace) -> dict[str, Any]:
    """Tokens, operations and median seconds by phase, and the step's padding."""
    recipe = recipe_of(options)
    with process_groups(recipe.parallel, recipe.seed):
        policy = build_policy(recipe)
        algorithm = algorithm_of(recipe)
        weighting = build_weighting(
            weighting_of(recipe), policy, recipe.resrl, recipe.rollout, seed=recipe.seed
        )
        settings = StepSettings.from_recipe(
            recipe, single_pass=takes_single_pass(weighting, recipe)
        )
        samples = recorded_groups(options, policy.hf_config.vocab_size)
        batch = RolloutBatch.from_samples(samples)

        def take(step: int, timers: PhaseTimers) -> dict[str, float]:
            observers = standard_observers(
                recipe.resrl, temperature=1.0, seed=recipe.seed, timers=timers
            )
            return rl_step(
                policy, algorithm, weighting, batch, settings, step, timers, observers
            ).metrics

        with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
            counted = Counted(counter)
            hook = policy.modules[0].decoder.register_forward_pre_hook(
                counted.count_tokens, with_kwargs=True
            )
            metrics = take(1, counted)
            hook.remove()
        timers, seconds = PhaseTimers(), []
        for step in range(options.steps):
            timers.collect()
            take(2 + step, timers)
            seconds.append(timers.collect())
        return {
            "tokens": counted.tokens,
            "operations": counted.operations,
            "seconds": {
                name: statistics.median(each.get(name, 0.0) for each in seconds) for name in PHASES
            },
            "padding": metrics["step/padding"],
            "passes": metrics["step/passes"],
            "peak": product_rate(),
        }


def measure_decoding(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of decoding, its operations, and what its products take alone."""
    recipe = recipe_of(options)
    with process_groups(recipe.parallel, recipe.seed):
        policy = build_policy(recipe, trainable=False)
        engine = MegatronEngine(policy, max_running_samples=options.prompts * options.group_size)
        samples = recorded_groups(options, policy.hf_config.vocab_size)
        prompts = [list(each.prompt.token_ids) for each in samples[:: options.group_size]]

        def generate(tokens: int) -> float:
            sampling = SamplingParams(tokens, stop_token_ids=(), n=options.group_size)
            began = time.perf_counter()
            engine.generate(GenerationRequest(prompts, sampling, seed=(0,)))
            return time.perf_counter() - began

        operations = []
        for tokens in (1, 2):
            with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
                generate(tokens)
            operations.append(counter.get_total_flops())
        # The prompts are read before the first token; every other token is a forward pass.
        passes = options.response_tokens - 1
        times = []
        for _ in range(options.steps + 1):
            short, whole = generate(1), generate(options.response_tokens)
            times.append((whole - short) / passes)
        rows = options.prompts * options.group_size
        products = list(products_of(policy, rows))
        return {
            "rows": rows,
            "seconds": statistics.median(times),
            "operations": operations[1] - operations[0],
            "weight_bytes": sum(4 * matrix.numel() for matrix, _ in products),
            "product_operations": sum(2 * matrix.numel() * count for matrix, count in products),
            "product_seconds": products_seconds(products),
            "peak": product_rate(),
            "memory": memory_rate(),
        }


def products_of(policy: Policy, rows: int) -> Iterator[tuple[torch.Tensor, int]]:
    """The matrices of a decoding step with the rows of each; experts get equal shares."""
    (module,) = policy.modules
    for layer in module.decoder.layers:
        yield layer.self_attention.linear_qkv.weight.data, rows
        yield layer.self_attention.linear_proj.weight.data, rows
        experts = getattr(layer.mlp, "experts", None)
        if experts is None:
            yield layer.mlp.linear_fc1.weight.data, rows
            yield layer.mlp.linear_fc2.weight.data, rows
            continue
        assert isinstance(experts, SequentialMLP), "megatron-core's experts on a CPU"
        yield layer.mlp.router.weight.data, rows
        own = max(1, rows * module.config.moe_router_topk // len(experts.local_experts))
        for expert in experts.local_experts:
            yield expert.linear_fc1.weight.data, own
            yield expert.linear_fc2.weight.data, own
    yield module.output_weight().data, rows
