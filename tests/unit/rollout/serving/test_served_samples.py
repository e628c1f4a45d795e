"""What a real vLLM server samples for us: the distribution, its log-probs, stops and seeds."""

from __future__ import annotations

import httpx
import pytest
import torch
from served_engine import engine_of, one_rank, served_recipe, wait_until, write_served_model
from transformers import AutoModelForCausalLM

from megatron_resrl.rollout.engine import GenerationRequest, SamplingParams
from megatron_resrl.rollout.serving.pooled_server import token_count

pytestmark = pytest.mark.vllm
PROMPTS = [[3, 4, 5, 6, 7], list(range(10, 60)) * 3, [9]]
TOLERANCE = 1e-4
"""Log-probs in fp32: other kernels, another order of sums."""


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return write_served_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def engine(model_path, tmp_path_factory):
    recipe = served_recipe(model_path, tmp_path_factory.mktemp("run"), seed_requests=True)
    with one_rank(), engine_of(recipe) as engine:
        yield engine


@pytest.fixture(scope="module")
def reference(model_path):
    return AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)


def reference_logits(model, prompt, tokens) -> torch.Tensor:
    """[T, V]: what each token of the response was drawn from."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *tokens]])).logits[0]
    return logits[len(prompt) - 1 : -1]


def test_vllm_engine_greedy_tokens_equal_transformers(engine, reference):
    responses = engine.generate(
        GenerationRequest(PROMPTS, SamplingParams(24, (), temperature=0), seed=(0,))
    )
    for prompt, (response,) in zip(PROMPTS, responses, strict=True):
        logits = reference_logits(reference, prompt, response.token_ids)
        assert logits.argmax(-1).tolist() == list(response.token_ids)
        tokens = torch.tensor(response.token_ids)[:, None]
        expected = logits.log_softmax(-1).gather(1, tokens)[:, 0]
        torch.testing.assert_close(
            torch.tensor(response.log_probs), expected, atol=TOLERANCE, rtol=0
        )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_vllm_engine_log_probs_equal_transformers(engine, reference, temperature):
    sampling = SamplingParams(40, (), n=3, temperature=temperature)
    responses = engine.generate(GenerationRequest(PROMPTS, sampling, seed=(1,)))
    for prompt, several in zip(PROMPTS, responses, strict=True):
        for response in several:
            logits = reference_logits(reference, prompt, response.token_ids) / temperature
            tokens = torch.tensor(response.token_ids)[:, None]
            expected = logits.log_softmax(-1).gather(1, tokens)[:, 0]
            torch.testing.assert_close(
                torch.tensor(response.log_probs), expected, atol=TOLERANCE, rtol=0
            )


def test_vllm_engine_ends_responses_with_our_stop_tokens_alone(engine):
    sampling = SamplingParams(60, (5, 6, 7), n=24)
    responses = [
        r
        for several in engine.generate(GenerationRequest(PROMPTS, sampling, seed=(2,)))
        for r in several
    ]
    assert {response.finish_reason for response in responses} == {"stop", "length"}
    for response in responses:
        assert len(response.log_probs) == len(response.token_ids)
        assert not set(response.token_ids[:-1]) & {5, 6, 7}
        assert (response.token_ids[-1] in {5, 6, 7}) == (response.finish_reason == "stop")
        assert response.finish_reason == "stop" or len(response.token_ids) == 60
    # 1 is the end-of-sequence token of the model's configuration.
    assert any(1 in response.token_ids[:-1] for response in responses)


@pytest.mark.setting("vllm.seed_requests")
def test_vllm_engine_samples_differ_and_follow_the_seed(engine):
    sampling = SamplingParams(20, (), n=64)
    first, again, other = (
        engine.generate(GenerationRequest(PROMPTS[:1], sampling, seed=seed))[0]
        for seed in [(3,), (3,), (4,)]
    )
    tokens = [response.token_ids for response in first]
    assert len(set(tokens)) == 64
    assert tokens == [response.token_ids for response in again]
    assert not set(tokens) & {response.token_ids for response in other}


def test_vllm_engine_truncates_to_the_likely_tokens(engine, reference):
    sampling = SamplingParams(40, (), n=2, top_k=3)
    ((response, _), *_) = engine.generate(GenerationRequest(PROMPTS[:1], sampling, seed=(5,)))
    logits = reference_logits(reference, PROMPTS[0], response.token_ids)
    likely = logits.topk(3, dim=-1).indices
    assert (likely == torch.tensor(response.token_ids)[:, None]).any(-1).all()


def test_vllm_engine_reports_each_complete_group_once(engine):
    told = []
    responses = engine.generate(
        GenerationRequest(
            PROMPTS,
            SamplingParams(8, (), n=4),
            seed=(6,),
            on_group=lambda *group: told.append(group),
        )
    )
    assert sorted(told, key=lambda group: group[0]) == list(enumerate(responses))


def test_vllm_engine_raises_errors_of_on_group(engine):
    def on_group(index, responses):
        raise ValueError("full disk")

    with pytest.raises(ValueError, match="full disk"):
        engine.generate(
            GenerationRequest(PROMPTS, SamplingParams(8, ()), seed=(7,), on_group=on_group)
        )


def tokens_made(engine) -> float:
    (pooled,) = engine._pool.servers
    return token_count(httpx.get(f"{pooled.url}/metrics").text)


def test_vllm_engine_responses_carry_weight_versions(engine):
    engine.update_weights(7)
    earlier = tokens_made(engine)
    pending = engine.begin(GenerationRequest(PROMPTS[:1], SamplingParams(3800, ()), seed=(8,)))
    wait_until(lambda: tokens_made(engine) > earlier + len(PROMPTS[0]))
    engine.update_weights(8)
    ((before,),) = pending.result()
    ((after,),) = engine.generate(GenerationRequest(PROMPTS[:1], SamplingParams(4, ()), seed=(8,)))
    assert before.weight_versions == (7, 8)
    assert after.weight_versions == (8, 8)


def test_vllm_engine_shows_the_answer_to_a_bad_request(engine):
    with pytest.raises(RuntimeError, match=r"prompt 0.*refused it.*400"):
        engine.generate(GenerationRequest([[10**6]], SamplingParams(4, ()), seed=(9,)))


@pytest.mark.setting("vllm.urls")
def test_vllm_engine_leaves_a_given_server_running(engine, model_path, tmp_path):
    pooled = engine._pool.servers[0]
    with engine_of(
        served_recipe(model_path, tmp_path, urls=(pooled.url + "/",), api_key=pooled.api_key)
    ) as other:
        ((response,),) = other.generate(
            GenerationRequest(PROMPTS[:1], SamplingParams(4, ()), seed=(10,))
        )
    assert len(response.token_ids) == 4
    engine.generate(GenerationRequest(PROMPTS[:1], SamplingParams(4, ()), seed=(10,)))
    assert engine._pool.servers[0].restarts == 0
