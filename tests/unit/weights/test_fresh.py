"""Fresh weights have megatron-core's distribution, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_families as tiny
import torch

from megatron_resrl.config.schema import ModelConfig, ParallelConfig, PrecisionConfig
from megatron_resrl.platform.distributed import process_groups
from megatron_resrl.policy.families import family_of
from megatron_resrl.policy.gpt import PolicyModel, build_model_chunks
from megatron_resrl.policy.model_config import read_hf_config, transformer_config
from megatron_resrl.weights.fresh import FreshTensors, FreshWeights, draw_weights

STD = 0.05
FAMILIES = ("qwen2", "gemma3", "qwen3_moe", "mixtral")
PINNED = [-0.0066975080, -0.0014204601, -0.0110359723]
"""Of the key 1 and the name of layer 0's `up_proj`."""


@pytest.fixture(scope="module", autouse=True)
def _one_rank() -> Iterator[None]:
    with process_groups(ParallelConfig(), 0):
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny.write_families(tmp_path_factory.mktemp("models"), FAMILIES)


def _model(path: Path, *, initialise: bool) -> PolicyModel:
    """Of megatron-core's own weights, or of none."""
    hf_config = read_hf_config(str(path))
    fields = {"perform_initialization": initialise, "init_method_std": STD}
    model = ModelConfig(str(path), megatron=fields)
    config = transformer_config(hf_config, model, ParallelConfig(), PrecisionConfig("fp32"))
    (chunk,) = build_model_chunks(hf_config, config)
    return chunk


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_fresh_weights_have_megatron_cores_distribution(models, name):
    theirs = _model(models[name], initialise=True)
    ours = _model(models[name], initialise=False)
    draw_weights([ours], read_hf_config(str(models[name])), FreshWeights(7, STD))
    expected = dict(theirs.named_parameters())
    for parameter, value in ours.named_parameters():
        want = expected[parameter]
        if value.dim() == 1:
            # Transformer Engine's zero-centred norms begin at 0; ours are not initialised.
            expected_value = torch.zeros_like(want) if name == "gemma3" else want
            assert torch.equal(value, expected_value), parameter
            continue
        # Five standard errors of mean and standard deviation, of both.
        error = 5 * float(want.std()) / math.sqrt(value.numel())
        assert abs(float(value.mean() - want.mean())) < 2 * error, parameter
        assert abs(float(value.std() - want.std())) < 2 * error, parameter
        assert not torch.equal(value, want)


def test_fresh_tensors_depend_on_seed_and_name_alone(models):
    family = family_of(read_hf_config(str(models["qwen2"])))

    def drawn(seed: int, layer: int) -> torch.Tensor:
        tensors = FreshTensors(family, FreshWeights(seed, STD))
        return tensors.load_one_hf_weight(f"model.layers.{layer}.mlp.up_proj.weight")

    assert torch.equal(drawn(1, 0), drawn(1, 0))
    assert not torch.equal(drawn(1, 0), drawn(2, 0))
    assert not torch.equal(drawn(1, 0), drawn(1, 1))
    # The same on every machine: numpy's generators are.
    torch.testing.assert_close(drawn(1, 0)[0, :3], torch.tensor(PINNED), rtol=1e-6, atol=0)
