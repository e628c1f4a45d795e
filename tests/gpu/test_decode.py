"""The embedded engine: tokens of transformers' `generate`, draws of the CPU, log-probabilities of
the scoring pass, also after updates and with FP8."""

from __future__ import annotations

import pytest
import torch
from gpu.measured import Measured
from tiny_decoding import decode, greedy_reference
from tiny_families import write_families
from tiny_scoring import draw, score, update

from megatron_resrl.policy.batches import TokenSequence
from megatron_resrl.rollout.engine import GenerationRequest, SamplingParams
from megatron_resrl.rollout.engines.megatron import MegatronEngine
from megatron_resrl.rollout.sampling import draw_tokens

pytestmark = pytest.mark.gpu

BF16_MEAN, BF16_MAX = 0.01, 0.08
FP8_MEAN, FP8_MAX = 0.05, 0.2
"""The scoring pass rounds to FP8, the decoder does not: 0.02 and 0.06 with emulated products."""
SETTINGS = {
    "bf16": (),
    "tensorwise": ("--precision.fp8=hybrid", "--precision.fp8_recipe=tensorwise"),
}


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_decoder_equals_generate(one_rank, engine: bool, measured, tmp_path, family: str) -> None:
    if engine:
        pytest.skip(
            "greedy tokens are compared in fp32, which Transformer Engine multiplies as TF32"
        )
    path = write_families(tmp_path, [family])[family]
    found = decode(path, {})
    wrong = sum(
        tokens != expected
        for several, expected in zip(found["greedy"], greedy_reference(path), strict=True)
        for tokens in several
    )
    measured.equal("responses_that_differ", wrong, 0)
    measured.at_most("log_probs_from_scorer", found["difference"], 2e-5)


@pytest.mark.parametrize("deterministic", [False, True], ids=["free", "deterministic"])
@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0.0}, {}, {"temperature": 0.7, "top_k": 900, "top_p": 0.9}],
    ids=["greedy", "whole", "truncated"],
)
def test_sampler_draws_what_the_cpu_draws(
    cuda: bool,
    measured: Measured,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict,
    deterministic: bool,
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # As in a run that is deterministic.
    generator = torch.Generator().manual_seed(1)
    logits = 4 * torch.randn(512, 3001, generator=generator)
    uniform = torch.rand(512, dtype=torch.float64, generator=generator)
    sampling = SamplingParams(1, (), **settings)
    device = "cuda" if cuda else "cpu"
    torch.use_deterministic_algorithms(deterministic)
    try:
        (tokens, log_probs), (expected, expected_log_probs) = (
            draw_tokens(logits.to(where), uniform.to(where), sampling) for where in (device, "cpu")
        )
    finally:
        torch.use_deterministic_algorithms(False)
    measured.equal("tokens_that_differ", int((tokens.cpu() != expected).sum()), 0)
    apart = (log_probs.cpu() - expected_log_probs).abs().max()
    measured.at_most("log_probs", float(apart), 1e-5)


@pytest.mark.parametrize("precision", SETTINGS)
def test_decoder_uses_the_weights_of_the_last_update(
    build, engine: bool, measured: Measured, precision: str
) -> None:
    if precision != "bf16" and not engine:
        pytest.skip("FP8 needs Transformer Engine")
    policy = build(*SETTINGS[precision], "--optimizer.lr=0.003", "--optimizer.lr_warmup_steps=0")
    decoder = MegatronEngine(policy, max_running_samples=64)
    mean, most = (FP8_MEAN, FP8_MAX) if SETTINGS[precision] else (BF16_MEAN, BF16_MAX)
    (sequence,) = draw(2, (8, 1))
    before = None
    for updates in range(3):
        request = GenerationRequest([sequence.prompt], SamplingParams(16, (), n=8), seed=(updates,))
        (responses,) = decoder.generate(request)
        drawn = [TokenSequence(sequence.prompt, response.token_ids) for response in responses]
        decoded = torch.tensor([p for response in responses for p in response.log_probs])
        apart = (score(policy, drawn) - decoded).abs()
        measured.at_most(f"mean_after_{updates}_updates", float(apart.mean()), mean)
        measured.at_most(f"max_after_{updates}_updates", float(apart.max()), most)
        before = decoded
        update(policy, drawn)
        moved = float((score(policy, drawn) - before).abs().max())
        measured.at_least(f"update_{updates}_moves", moved, 0.1)  # Old weights would show.
