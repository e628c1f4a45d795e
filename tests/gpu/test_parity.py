"""Models of several families against transformers, with megatron-core's and Transformer Engine's
layers.

Limits are those of the arithmetic: fp32 sums in another order (2e-5 of logits up to 20); TF32, in
which Transformer Engine multiplies fp32 (ten bits of mantissa); bf16 (seven). On a CPU 0.04 of
log-probabilities and 0.12 of states (of size 10) are measured in bf16.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_families as tiny
from distributed.policy.ranks_parity import Layout, measure
from gpu.measured import Measured
from tiny_scoring import SEQUENCES, score, update

from megatron_resrl.policy import layer_spec

pytestmark = pytest.mark.gpu

CASES = [
    *((family, "fp32") for family in ("llama", "qwen2", "qwen3", "gemma3", "qwen3_moe")),
    # Experts are left out: rounding sends a token to another one.
    *((family, "bf16") for family in ("llama", "qwen2", "qwen3", "gemma3")),
]
LIMITS = {
    "fp32": {
        "log_probs": 2e-5,
        "entropy": 2e-5,
        "hidden": 2e-5,
        "step_0_hidden": 2e-5,
        "step_0_grad_norm": 1e-4,
        "step_1_grad_norm": 1e-4,
        "step_1_weights": 1e-4,
        "exported": 0.0,
    },
    "tf32": {"log_probs": 0.02, "hidden": 0.02, "step_0_grad_norm": 2e-3, "exported": 0.0},
    "bf16": {"log_probs": 0.08, "hidden": 0.3, "step_0_grad_norm": 2e-2, "exported": 0.0},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, tiny.Reference]]:
    """Family -> its model, whose weights are numbers of bf16, and what transformers makes of it."""
    families = dict.fromkeys(family for family, _ in CASES)
    paths = tiny.write_families(tmp_path_factory.mktemp("families"), families, bf16=True)
    return {family: (path, tiny.reference(path)) for family, path in paths.items()}


@pytest.mark.parametrize(("family", "dtype"), CASES)
def test_policy_equals_transformers(
    models: dict, engine: bool, cuda: bool, measured: Measured, family: str, dtype: str
) -> None:
    found = measure(Layout(dtype=dtype), *models[family])
    arithmetic = "tf32" if engine and cuda and dtype == "fp32" else dtype
    for quantity, limit in LIMITS[arithmetic].items():
        measured.at_most(quantity, found[quantity], limit)


def test_engine_layers_equal_local_ones(
    build, engine: bool, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not engine:
        pytest.skip("without Transformer Engine")
    policies = [build()]
    monkeypatch.setattr(layer_spec, "uses_transformer_engine", lambda: False)
    policies.append(build())
    ours, theirs = (score(policy, SEQUENCES) for policy in policies)
    measured.at_most("log_probs_mean", float((ours - theirs).abs().mean()), 0.01)
    measured.at_most("log_probs_max", float((ours - theirs).abs().max()), 0.08)
    norms = [update(policy, SEQUENCES)[0].grad_norm for policy in policies]
    measured.at_most("grad_norm", abs(norms[0] / norms[1] - 1), 1e-2)
