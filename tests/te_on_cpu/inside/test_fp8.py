"""FP8 by whole tensors with its real rounding: scoring, updating, decoding, checkpoints.

Numbers are those of transformers in fp32 on the same weights.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from megatron.core.extensions import transformer_engine as wrappers
from safetensors.torch import load_file
from tiny_scoring import SEQUENCES, reference, score, update
from transformer_engine.pytorch.quantization import FP8GlobalStateManager

from megatron_resrl.checkpoint import (
    Retention,
    TrainerState,
    latest_checkpoint,
    load_checkpoint,
)
from megatron_resrl.checkpoint.checkpoint import begin_save
from megatron_resrl.policy.batches import TokenSequence
from megatron_resrl.rollout.engine import GenerationRequest, SamplingParams
from megatron_resrl.rollout.engines.megatron import MegatronEngine
from megatron_resrl.weights.hugging_face import export_weights

BF16 = 0.01
"""Largest distance of log-probabilities in bf16; 0.004 measured."""
FP8 = 0.1
"""In FP8; 0.04 measured."""
RECIPES = [
    pytest.param((), id="bf16"),
    *(
        pytest.param((f"--precision.fp8={kind}", f"--precision.fp8_recipe={scaling}"), id=scaling)
        for kind, scaling in itertools.product(
            ("hybrid",), ("tensorwise", "delayed", "blockwise", "mxfp8")
        )
    ),
    pytest.param(("--precision.fp8=e4m3", "--precision.fp8_recipe=tensorwise"), id="e4m3"),
]
IN_FP8 = RECIPES[1:]
TENSORWISE, DELAYED = IN_FP8[:2]


@pytest.fixture(scope="module")
def bf16_gradient_norm(build) -> float:
    return update(build(), SEQUENCES)[0].grad_norm


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("settings", RECIPES)
def test_fp8_loss_sees_what_was_scored(
    build, model, bf16_gradient_norm, settings: tuple[str, ...], packed: bool
) -> None:
    policy = build(*settings, f"--algorithm.sequence_packing={str(packed).lower()}")
    wanted = reference(model, policy, SEQUENCES)
    scored = score(policy, SEQUENCES)
    error = (scored - wanted).abs()
    assert error.max() < (FP8 if settings else BF16)
    # Rounding to FP8 is real.
    assert (error.mean() > 0.003) == bool(settings)
    result, seen = update(policy, SEQUENCES)
    assert result.applied
    # Delayed scaling takes other scales in each pass.
    torch.testing.assert_close(seen, scored, rtol=0, atol=FP8 if "delayed" in str(settings) else 0)
    assert result.grad_norm == pytest.approx(bf16_gradient_norm, rel=0.02)


@pytest.mark.parametrize("settings", RECIPES)
def test_fp8_decoding_uses_the_weights_of_the_last_update(build, model, settings) -> None:
    policy = build(*settings, "--optimizer.lr=0.003", "--optimizer.lr_warmup_steps=0")
    engine = MegatronEngine(policy, max_running_samples=64)
    prompt = tuple(range(3, 11))
    for number in range(3):
        sampling = SamplingParams(8, (), n=8)
        (responses,) = engine.generate(GenerationRequest([prompt], sampling, seed=(number,)))
        drawn = [TokenSequence(prompt, response.token_ids) for response in responses]
        decoded = torch.tensor([p for response in responses for p in response.log_probs])
        wanted = reference(model, policy, drawn)
        assert (decoded - wanted).abs().max() < 2 * BF16
        assert (score(policy, drawn) - wanted).abs().max() < (FP8 if settings else BF16)
        before = wanted
        update(policy, drawn)
        # Old weights would show.
        assert (reference(model, policy, drawn) - before).abs().max() > 0.1


@pytest.mark.parametrize("settings", IN_FP8)
def test_fp8_decodes_prompts_of_every_length(build, settings) -> None:
    engine = MegatronEngine(build(*settings), max_running_samples=64)
    for length, samples in ((5, 2), (8, 2), (1, 1), (16, 16), (24, 4), (24, 3)):
        prompt = list(range(3, 3 + length))
        # Rows that stop leave the batch, which then has any number of them.
        sampling = SamplingParams(6, tuple(range(40)), n=samples)
        (responses,) = engine.generate(GenerationRequest([prompt], sampling, seed=(0,)))
        assert len(responses) == samples


@pytest.mark.parametrize("settings", IN_FP8)
def test_fp8_policy_exports_weights_rounded_once_to_bf16(build, model, settings) -> None:
    policy = build(*settings, "--optimizer.lr=0")
    update(policy, SEQUENCES)
    exported = dict(export_weights(policy.modules, policy.hf_config))
    loaded = load_file(model / "model.safetensors")
    assert exported.keys() == loaded.keys()
    for name, weight in exported.items():
        torch.testing.assert_close(weight, loaded[name].bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("settings", IN_FP8)
def test_fp8_weights_are_made_anew_in_each_pass(
    build, monkeypatch: pytest.MonkeyPatch, settings
) -> None:
    policy = build(*settings)
    engine = MegatronEngine(policy, max_running_samples=4)
    calls: list[tuple[bool, bool | None]] = []
    layer = wrappers.te.pytorch.LayerNormLinear
    forward = layer.forward

    def noted(self, x, is_first_microbatch=None, **rest):
        calls.append((FP8GlobalStateManager.is_fp8_enabled(), is_first_microbatch))
        return forward(self, x, is_first_microbatch=is_first_microbatch, **rest)

    monkeypatch.setattr(layer, "forward", noted)
    layers = 2 * policy.config.num_layers
    first, others = [(True, True)] * layers, [(True, False)] * layers
    for _ in range(2):
        engine.generate(GenerationRequest([[3, 4, 5, 6]], SamplingParams(3, (), n=2), seed=(0,)))
        assert {in_fp8 for in_fp8, _ in calls} == {False}
        calls.clear()
        score(policy, SEQUENCES)
        assert calls == first + others
        calls.clear()
        update(policy, SEQUENCES)
        assert calls == first + others
        calls.clear()


@pytest.mark.parametrize(
    ("saved", "resumed"),
    [
        pytest.param(*(each.values[0] for each in pair), id="-".join(each.id for each in pair))
        for pair in [
            *zip(IN_FP8, IN_FP8, strict=True),
            *((RECIPES[0], resumed) for resumed in IN_FP8),
            # Scales that one keeps and the other does not.
            *((TENSORWISE, DELAYED), (DELAYED, TENSORWISE)),
        ]
    ],
)
def test_fp8_run_goes_on(build, tmp_path, saved, resumed) -> None:
    policy = build(*saved)
    update(policy, SEQUENCES)
    # As an evaluation before the save does.
    MegatronEngine(policy, max_running_samples=1).generate(
        GenerationRequest([[3, 4, 5]], SamplingParams(2, (), n=1), seed=(0,))
    )
    state = TrainerState(step=1, sampler={})
    begin_save(tmp_path, policy, state, retention=Retention(1)).finish()
    fresh = build(*resumed)
    load_checkpoint(latest_checkpoint(tmp_path), fresh)
    if saved == resumed:
        # With the scales that delayed scaling has collected.
        assert torch.equal(score(fresh, SEQUENCES), score(policy, SEQUENCES))
    norms = [update(each, SEQUENCES)[0].grad_norm for each in (policy, fresh)]
    # Delayed scaling lets two policies of one process change each other's scales.
    exact = saved == resumed and "delayed" not in str(saved)
    assert norms[1] == pytest.approx(norms[0], rel=1e-6 if exact else 0.02)
