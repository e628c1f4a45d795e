"""Dry runs of tiny models: what is counted, and that faults are found."""

from pathlib import Path

import pytest
from dry_runs import SINGLE_PASS, phases_of, write_config

from megatron_resrl.planning.dry_run import sendable

TP2 = ("parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("dense"))


def test_dry_run_needs_config_json_only(model):
    phases = phases_of(model)
    assert [file.name for file in model.iterdir()] == ["config.json"]
    assert set(phases) >= {"build", "scoring", "subspace", "update", "weight_export", "checkpoint"}


def test_dry_run_counts_matrix_flops_of_the_model(model):
    # 2 operations per weight and token: of two groups of four, each 63 tokens fed, in the layers,
    # and the output matrix at the 40 response tokens; backward twice as much, and the
    # log-probabilities of the update once more.
    layers = 4 * (128 * (128 + 64 + 64 + 128) + 3 * 128 * 384)
    attention = 4 * 4 * 63 * 63 / 2 * 128  # Per response: two products, half of the square.
    head = 1024 * 128 * 40
    forward = 8 * (2 * (layers * 63 + head) + attention)
    scoring = phases_of(model)["scoring"].matrix_flops["bfloat16"]
    assert scoring == pytest.approx(forward, rel=0.01)
    backward = 8 * (2 * (2 * layers * 63 + 3 * head) + 2.5 * attention)
    update = phases_of(model)["update"].matrix_flops["bfloat16"]
    assert update == pytest.approx(forward + backward, rel=0.01)


@pytest.mark.setting("algorithm.shared_prompts")
def test_dry_run_takes_the_shared_prompts_of_the_recipe(model):
    settings = ("algorithm.shared_prompts=auto", "algorithm.micro_batch_size=4")
    copies, shared = phases_of(model), phases_of(model, *settings)
    # The prompts of 24 tokens of both groups go through the layers once instead of four times; in
    # scoring twice, because correct responses come first.
    layers = 4 * (128 * (128 + 64 + 64 + 128) + 3 * 128 * 384)
    for phase, passes, prompts in (("scoring", 1, 2), ("update", 3, 1)):
        found = [each[phase].matrix_flops["bfloat16"] for each in (copies, shared)]
        less = passes * 2 * 2 * layers * (4 - prompts) * 24
        # A kernel with a mask leaves none of the 39 x 63 scores of a response out.
        pairs = 4 * 63 * 63 / 2 - prompts * 24 * 24 / 2 - 4 * 39 * 63
        less += 2 * (3.5 if passes == 3 else 1) * 4 * 4 * 128 * pairs
        assert found[0] - found[1] == pytest.approx(less, rel=0.001)


@pytest.mark.setting("algorithm.kl_coefficient")
def test_dry_run_counts_the_pass_of_a_reference(model):
    without, found = phases_of(model), phases_of(model, "algorithm.kl_coefficient=0.1")
    flops = [each["scoring"].matrix_flops["bfloat16"] for each in (without, found)]
    assert flops[1] == 2 * flops[0]
    assert found["update"].matrix_flops == without["update"].matrix_flops
    # The weights go down and up, and the reference's up.
    weights = 2 * (2 * 1024 * 128 + 4 * (128 * 384 * 4 + 2 * 128) + 128)
    copied = found["scoring"].host_copy_bytes - without["scoring"].host_copy_bytes
    assert copied == pytest.approx(3 * weights, rel=0.01)
    assert found["update"].peak_bytes == pytest.approx(without["update"].peak_bytes, rel=0.01)


def test_dry_run_takes_a_step_of_distillation(model):
    found = [
        phases_of(model, "algorithm.name=distillation", f"teacher.{teacher}")["scoring"]
        for teacher in ("url=http://a/v1", f"path={model}")
    ]
    flops = [each.matrix_flops["bfloat16"] for each in found]
    assert flops[1] == 2 * flops[0]


@pytest.mark.setting("algorithm.single_pass")
def test_dry_run_takes_the_single_pass_of_the_recipe(model):
    two, one = phases_of(model), phases_of(model, SINGLE_PASS)
    # The update's own forward pass is the only one; two groups fill as many micro-batches.
    assert "bfloat16" not in one["scoring"].matrix_flops
    assert one["update"].matrix_flops["bfloat16"] == two["update"].matrix_flops["bfloat16"]
    assert one["subspace"].matrix_flops == two["subspace"].matrix_flops
    assert one["update"].start_bytes <= two["update"].start_bytes


def test_dry_run_scores_groups_of_many_negatives_first(model):
    settings = (SINGLE_PASS, "algorithm.micro_batch_size=1")
    found = phases_of(model, *settings)
    forward = phases_of(model)["scoring"].matrix_flops["bfloat16"]
    assert found["scoring"].matrix_flops["bfloat16"] == forward


def test_dry_run_counts_what_tensor_parallel_ranks_send(model):
    traffic = {
        (each.group, each.collective): each
        for each in phases_of(model, *TP2, rank=1, world_size=2)["scoring"].traffic
    }
    # Two micro-batches per group; two reduce-scatters per layer, and one of the embedding.
    scattered = traffic["tensor", "reduce_scatter"]
    assert (scattered.size, scattered.calls) == (2, 4 * (2 * 4 + 1))
    # [64, 2, 128] in bf16, of which half stays here.
    assert scattered.bytes == scattered.calls * 64 * 2 * 128 * 2 // 2


def test_dry_run_names_weights_gradients_and_optimizer(model):
    kinds = phases_of(model)["update"].peak_by_kind
    parameters = 2 * 1024 * 128 + 4 * (128 * 384 + 3 * 128 * 384 + 2 * 128) + 128
    assert kinds["weights"] == pytest.approx(2 * parameters, rel=0.01)
    assert kinds["gradients"] == pytest.approx(4 * parameters, rel=0.01)
    # Two moments and the masters, and a temporary of the step at most.
    assert 12 * parameters <= kinds["optimizer"] <= 16.2 * parameters


def test_sendable_keeps_the_words_of_an_error():
    plain = ValueError("3 layers")
    assert sendable(plain) is plain
    other = sendable(KeyError("a name", lambda: None))
    assert isinstance(other, RuntimeError)
    assert str(other).startswith("KeyError: ('a name', ")
