"""Log-probabilities of a teacher: another model of the policy's form, or a server."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_families as tiny
import torch
from answering import Answer, Request, answering
from one_step import score, take_step
from teaching import serving, write_teacher
from tiny_rollouts import rollouts
from vllm_server import vllm_server, write_served

from megatron_resrl.config.schema import (
    AlgorithmConfig,
    ModelConfig,
    OptimizerConfig,
    PrecisionConfig,
    Recipe,
)
from megatron_resrl.config.schema_teacher import TeacherConfig
from megatron_resrl.errors import InputError
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.rollout.batch import RolloutBatch
from megatron_resrl.rollout.worker import build_policy
from megatron_resrl.training import teacher_server
from megatron_resrl.training.algorithm import algorithm_of
from megatron_resrl.training.other_models import OtherModels, other_models
from megatron_resrl.training.rl_step import StepSettings
from megatron_resrl.training.teacher_server import TeacherFailure, TeacherServer

Server = Callable[[Request], Answer]


@pytest.fixture(scope="module")
def teacher_folder(qwen3_on_one_rank: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The policy's model with other weights."""
    return write_teacher(qwen3_on_one_rank, tmp_path_factory.mktemp("teacher"))


def recipe_of(model: Path, **teacher: Any) -> Recipe:
    return Recipe(
        model=ModelConfig(path=str(model)),
        precision=PrecisionConfig("fp32"),
        optimizer=OptimizerConfig(lr=1e-2, lr_warmup_steps=0, adam_eps=1e-3),
        algorithm=AlgorithmConfig(name="distillation", micro_batch_size=8),
        teacher=TeacherConfig(**teacher),
    )


def expected_log_probs(folder: Path, batch: RolloutBatch) -> torch.Tensor:
    """[B, T] by transformers, one response at a time."""
    model = tiny.read_model(folder)
    found = torch.zeros(batch.loss_mask.shape)
    for row in range(len(batch)):
        prompt, response = int(batch.prompt_lengths[row]), int(batch.response_lengths[row])
        tokens = batch.token_ids[row, : prompt + response]
        with torch.no_grad():
            log_probs = model(tokens[None]).logits[0].log_softmax(-1)
        taken = log_probs[:-1].gather(1, tokens[1:, None])[:, 0]
        found[row, :response] = taken[prompt - 1 :]
    return found


def scores_of(others: OtherModels, recipe: Recipe, batch: RolloutBatch) -> torch.Tensor:
    settings = StepSettings.from_recipe(recipe).passes
    return others["teacher_log_probs"].log_probs(batch, settings, PhaseTimers())


@pytest.mark.setting("teacher.path")
def test_frozen_teacher_scores_and_leaves_the_policy_alone(qwen3_on_one_rank, teacher_folder):
    recipe, (samples, _) = recipe_of(qwen3_on_one_rank, path=str(teacher_folder)), rollouts()
    batch, policy = RolloutBatch.from_samples(samples), build_policy(recipe)
    before = score(policy, recipe, batch).log_probs
    others = other_models(algorithm_of(recipe), recipe.teacher, policy)
    assert torch.equal(score(policy, recipe, batch).log_probs, before)
    found, expected = scores_of(others, recipe, batch), expected_log_probs(teacher_folder, batch)
    # fp32, in another order of sums.
    torch.testing.assert_close(
        found[batch.loss_mask], expected[batch.loss_mask], atol=1e-5, rtol=0.0
    )
    assert (expected - before)[batch.loss_mask].abs().max() > 0.1


def test_frozen_teacher_of_another_form_is_refused(qwen3_on_one_rank, tmp_path):
    other = tiny.write_families(tmp_path, ["llama_tied"])["llama_tied"]
    recipe = recipe_of(qwen3_on_one_rank, path=str(other))
    with pytest.raises(InputError, match=r"teacher\.path"):
        other_models(algorithm_of(recipe), recipe.teacher, build_policy(recipe))


@pytest.mark.setting("teacher.url", "teacher.api_key")
def test_teacher_server_gives_its_models_log_probs(qwen3_on_one_rank, teacher_folder):
    seen: list[Request] = []
    samples, _ = rollouts(masked=True)
    batch = RolloutBatch.from_samples(samples)
    with answering(serving(tiny.read_model(teacher_folder), seen)) as url:
        recipe = recipe_of(qwen3_on_one_rank, url=f"{url}/v1/", api_key="secret")
        others = other_models(algorithm_of(recipe), recipe.teacher, build_policy(recipe))
        found = scores_of(others, recipe, batch)
    torch.testing.assert_close(found, expected_log_probs(teacher_folder, batch), atol=1e-5, rtol=0)
    assert {each.authorization for each in seen} == {"Bearer secret"}
    assert {each.route for each in seen} == {"/v1/models", "/v1/completions"}
    assert all(each.body["model"] == "large" for each in seen if each.body)


@pytest.mark.vllm
@pytest.mark.slow
def test_teacher_server_is_a_real_vllm(qwen3_on_one_rank, tmp_path):
    folder = write_served(tmp_path / "teacher", "qwen3", seed=3)
    samples, _ = rollouts()
    batch = RolloutBatch.from_samples(samples)
    arguments = ["--load-format", "auto", "--api-key", "secret"]
    with vllm_server(folder, tmp_path / "log", arguments, {}) as url:
        recipe = recipe_of(qwen3_on_one_rank, url=f"{url}/v1", api_key="secret")
        others = other_models(algorithm_of(recipe), recipe.teacher, build_policy(recipe))
        found = scores_of(others, recipe, batch)
        with pytest.raises(InputError, match="refused a request with status 401"):
            TeacherServer(TeacherConfig(url=f"{url}/v1"))
    # fp32 by other kernels.
    torch.testing.assert_close(found, expected_log_probs(folder, batch), atol=1e-4, rtol=0)


@pytest.mark.setting("teacher.url", "teacher.path")
def test_distillation_lessens_the_divergence_from_either_teacher(qwen3_on_one_rank, teacher_folder):
    samples, _ = rollouts()
    measured = []
    with answering(serving(tiny.read_model(teacher_folder))) as url:
        for teacher in ({"path": str(teacher_folder)}, {"url": f"{url}/v1"}):
            recipe = recipe_of(qwen3_on_one_rank, **teacher)
            policy = build_policy(recipe)
            others = other_models(algorithm_of(recipe), recipe.teacher, policy)
            steps = [take_step(policy, recipe, samples, n, others=others) for n in range(1, 4)]
            measured.append([each.metrics["distillation/reverse_kl"] for each in steps])
    frozen, served = measured
    assert frozen == pytest.approx(served, abs=1e-4)
    assert frozen[2] < frozen[1] < frozen[0]
    batch = RolloutBatch.from_samples(samples)
    policy = score(build_policy(recipe), recipe, batch).log_probs
    apart = (policy - expected_log_probs(teacher_folder, batch))[batch.loss_mask]
    assert frozen[0] == pytest.approx(float(apart.mean()), abs=1e-5)


def failing(times: int, status: int, text: str = "busy") -> Server:
    """Serves a list of models after so many failures."""
    left = [times]

    def answer(request: Request) -> Answer:
        left[0] -= 1
        return (status, text) if left[0] >= 0 else (200, {"data": [{"id": "a"}, {"id": "b"}]})

    return answer


@pytest.mark.setting("teacher.retries", "teacher.model")
def test_teacher_server_is_asked_again_as_often_as_it_may(qwen3_on_one_rank, monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(teacher_server.time, "sleep", waits.append)
    with answering(failing(2, 503)) as url:
        TeacherServer(TeacherConfig(url=url, model="b", retries=2))
    assert waits == [1.0, 2.0]
    with (
        answering(failing(2, 503)) as url,
        pytest.raises(InputError, match="status 503: busy, at the last of 2 attempts"),
    ):
        TeacherServer(TeacherConfig(url=url, model="b", retries=1))


@pytest.mark.setting("teacher.model")
@pytest.mark.parametrize("model", [None, "c"])
def test_teacher_server_needs_the_name_of_one_model(qwen3_on_one_rank, model):
    with (
        answering(failing(0, 200)) as url,
        pytest.raises(InputError, match=rf"teacher\.model = {model!r}: .* serves a, b; name one"),
    ):
        TeacherServer(TeacherConfig(url=url, model=model))


@pytest.mark.setting("teacher.timeout_s")
def test_teacher_server_that_hangs_is_named_with_its_limit(qwen3_on_one_rank):
    ended = threading.Event()

    def hang(request: Request) -> Answer:
        ended.wait(30)
        return 200, {}

    with answering(hang) as url:
        try:
            with pytest.raises(InputError, match=r"no answer within teacher\.timeout_s = 0\.2 s"):
                TeacherServer(TeacherConfig(url=url, timeout_s=0.2, retries=0))
        finally:
            ended.set()


ENTRY = {"5": {"logprob": -1.0}}


@pytest.mark.parametrize(
    ("status", "said", "match"),
    [
        (400, "longer than 4096 tokens", "refused a request with status 400: longer than 4096"),
        (200, {"choices": [{"text": "x"}]}, r"no log-probabilities of its \d+ tokens"),
        (200, {"choices": [{"prompt_logprobs": [None, ENTRY]}]}, "2 entries"),
        (200, "<html>", "not JSON"),
    ],
)
def test_teacher_server_with_a_useless_answer_ends_the_run(qwen3_on_one_rank, status, said, match):
    samples, _ = rollouts()
    batch = RolloutBatch.from_samples(samples)

    def answer(request: Request) -> Answer:
        models = request.route.endswith("/models")
        return (200, {"data": [{"id": "a"}]}) if models else (status, said)

    with answering(answer) as url:
        recipe = recipe_of(qwen3_on_one_rank, url=url, retries=0)
        server = TeacherServer(recipe.teacher)
        settings = StepSettings.from_recipe(recipe).passes
        with pytest.raises(TeacherFailure, match=match) as failure:
            server.log_probs(batch, settings, PhaseTimers())
    assert failure.value.common


@pytest.mark.parametrize("value", [-9999.0, 0.5, float("nan")])
def test_teacher_server_gives_log_probabilities_only(value):
    entries = [None, {"7": {"logprob": -0.5}}, {"5": {"logprob": value}}]
    with pytest.raises(ValueError, match="as the log-probability of token 5"):
        teacher_server._log_probs(entries, [3, 7, 5])
    assert teacher_server._log_probs(entries[:2], [3, 7]) == [0.0, -0.5]


@pytest.mark.setting("teacher.path")
def test_distillation_with_kl_has_both_models(qwen3_on_one_rank, teacher_folder):
    recipe = recipe_of(qwen3_on_one_rank, path=str(teacher_folder))
    recipe = replace(recipe, algorithm=replace(recipe.algorithm, kl_coefficient=0.1))
    samples, _ = rollouts()
    policy = build_policy(recipe)
    others = other_models(algorithm_of(recipe), recipe.teacher, policy)
    metrics = take_step(policy, recipe, samples, others=others).metrics
    assert metrics["reference/kl"] < 1e-10
    assert metrics["distillation/reverse_kl"] > 0.01
