"""A token's step through the layers gives the bits of megatron-core's modules, in every family."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_families import family_configs, windowed_configs, write_families

from megatron_resrl.config.schema import ModelConfig, ParallelConfig, PrecisionConfig
from megatron_resrl.platform.distributed import process_groups
from megatron_resrl.policy.policy import Policy
from megatron_resrl.policy.token_step import TokenStep
from megatron_resrl.rollout.engines.cached_decoder import CachedDecoder, whole_sequences

FAMILIES = [*family_configs(), *windowed_configs()]
EQUAL = [[3, 4, 5, 6, 7, 8], [9, 10, 11, 12, 13, 14]]
UNEQUAL = [[3, 4, 5, 6, 7, 8], [9, 10], [11]]
NEW_TOKENS = 7


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Models of all families; one rank."""
    with process_groups(ParallelConfig(), 0):
        yield write_families(tmp_path_factory.mktemp("models"), FAMILIES)


def policy_of(path: Path, params_dtype: str) -> Policy:
    precision = PrecisionConfig(params_dtype)  # type: ignore[arg-type]  # One of its values.
    policy = Policy.build(ModelConfig(str(path)), ParallelConfig(), precision, optimizer=None)
    policy.eval()
    return policy


@torch.no_grad()
def decoded(policy: Policy, prompts: list[list[int]], *, by_modules: bool) -> torch.Tensor:
    """[tokens, b, V] logits of each new token, with a row dropped on the way."""
    with whole_sequences(policy.modules):
        decoder = CachedDecoder(policy.modules, prompts, NEW_TOKENS)
        if by_modules:
            decoder.steps = [None for _ in decoder.steps]
        assert by_modules or None not in decoder.steps
        logits = [decoder.prefill()]
        for number in range(NEW_TOKENS - 1):
            if number == 2:
                decoder.select(torch.arange(len(prompts) - 1))
            last = logits[-1][: len(decoder.padding), :120]
            logits.append(decoder.advance(last.argmax(-1)))
    return torch.stack([each[: len(prompts) - 1] for each in logits])


@pytest.mark.parametrize("family", FAMILIES)
def test_token_step_gives_the_bits_of_the_modules(family, paths):
    policy = policy_of(paths[family], "fp32")
    for prompts in (EQUAL, UNEQUAL):
        modules, steps = (decoded(policy, prompts, by_modules=way) for way in (True, False))
        assert torch.equal(modules, steps)


def test_token_step_gives_the_bits_of_the_modules_in_bf16(paths):
    policy = policy_of(paths["qwen3"], "bf16")
    modules, steps = (decoded(policy, UNEQUAL, by_modules=way) for way in (True, False))
    assert torch.equal(modules, steps)


def test_token_step_leaves_other_layers_to_the_modules(paths):
    policy = policy_of(paths["qwen2"], "fp32")
    (module,) = policy.modules
    assert TokenStep.takes(module)
    module.config.activation_func_clamp_value = 7.0
    assert not TokenStep.takes(module)
