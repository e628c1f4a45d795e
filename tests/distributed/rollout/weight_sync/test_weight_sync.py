"""Weights sent from every layout of the trainer to real vLLM servers on CPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from answering import free_port
from ranks import run_ranks
from tcp_proxy import proxy_to
from tiny_families import VOCABULARY, read_model
from vllm_server import vllm_server, write_served

from megatron_resrl.config.schema import VllmConfig
from megatron_resrl.rollout.weight_sync.backends import server_arguments
from megatron_resrl.rollout.weight_sync.control import ServerControl

pytestmark = pytest.mark.vllm

SCRIPT = Path(__file__).with_name("ranks_weight_sync.py")
TP2 = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
DENSE = {
    "one rank": (1, {}),
    "TP2+SP": (2, TP2),
    "PP2": (2, {"pipeline_model_parallel_size": 2}),
}
EXPERTS = {
    "one rank": (1, {}),
    "EP2": (2, {"expert_model_parallel_size": 2}),
    "TP2+SPxEP2": (
        2,
        TP2 | {"expert_model_parallel_size": 2, "expert_tensor_parallel_size": 1},
    ),
}
LAYOUTS = {"llama_tied": DENSE, "qwen3": DENSE, "qwen3_moe": EXPERTS, "gemma3": DENSE}
SMALL, LARGE = 2**13, 2**30
NEW_TOKENS = 8


@dataclass(frozen=True)
class Served:
    """A server that runs, and what it serves."""

    family: str
    workers: int
    """Ranks of the server: its own tensor parallelism."""
    control: ServerControl
    folder: Path

    def model(self, seed: int) -> Path:
        """A random model of the server's shape, of its own for each seed."""
        folder = self.folder / f"model_{seed}"
        return folder if folder.exists() else write_served(folder, self.family, seed=seed)

    def run(self, task: str, model: Path, version: int, **given: Any) -> Any:
        """What rank 0 of `ranks_weight_sync.py` found."""
        world, layout = given.get("layout", (1, {}))
        arguments = [
            task,
            given.get("url", self.control.url),
            given.get("others", "-"),
            model,
            version,
        ]
        arguments += [given.get("bucket", LARGE), given.get("precision", "fp32")]
        arguments.append(json.dumps(layout))
        out = run_ranks(SCRIPT, world, *arguments)
        line = next(line for line in out.splitlines() if line.startswith("RESULT "))
        return json.loads(line.removeprefix("RESULT "))

    def checksums(self) -> list[dict[str, int]]:
        """Of each worker."""
        answer = self.control.post("/collective_rpc", {"method": "megatron_resrl_checksums"})
        return [result["sums"] for result in answer["results"]]

    def says(self, text: str) -> bool:
        """Whether its log has a text."""
        return text in (self.folder / "log").read_text()

    def greedy(self, prompt: list[int]) -> tuple[list[int], list[float]]:
        sampling = {"max_tokens": NEW_TOKENS, "temperature": 0.0, "ignore_eos": True, "logprobs": 0}
        body = {"token_ids": prompt, "sampling_params": sampling}
        choice = self.control.post("/inference/v1/generate", body)["choices"][0]
        return choice["token_ids"], [t["logprob"] for t in choice["logprobs"]["content"]]


@pytest.fixture(
    scope="module",
    params=[
        ("llama_tied", 1),
        pytest.param(("llama_tied", 2), marks=pytest.mark.slow),
        pytest.param(("qwen3", 1), marks=pytest.mark.slow),
        pytest.param(("qwen3_moe", 1), marks=pytest.mark.slow),
        pytest.param(("gemma3", 1), marks=pytest.mark.slow),
    ],
    ids=lambda param: param[0] if param[1] == 1 else f"{param[0]}-TP{param[1]}",
)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """One server per family and size, with random weights of vLLM's own at first."""
    family, workers = request.param
    with serving(family, tmp_path_factory.mktemp(family), workers) as found:
        yield found


@contextmanager
def serving(
    family: str, folder: Path, workers: int = 1, *, dtype: str = "float32"
) -> Iterator[Served]:
    """A server until the block ends."""
    model = write_served(folder / "served", family, seed=1)
    arguments, environment = server_arguments(VllmConfig(weight_transfer="file"), "colocated")
    arguments += ["--tensor-parallel-size", str(workers)]
    with vllm_server(model, folder / "log", arguments, environment, dtype=dtype) as url:
        yield Served(family, workers, ServerControl(url), folder)


@pytest.fixture
def llama(served: Served) -> Served:
    """The tied Llama; what does not depend on the family is shown with it."""
    if (served.family, served.workers) != ("llama_tied", 1):
        pytest.skip("shown with one family")
    return served


def _prompts() -> list[list[int]]:
    """A short one, and one that fills two blocks of the server's KV cache."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(VOCABULARY, (n,), generator=generator).tolist() for n in (5, 290)]


@torch.no_grad()
def _reference(model: Path, prompt: list[int]) -> tuple[list[int], list[float]]:
    """transformers' greedy tokens and their log-probs."""
    reference, ids, log_probs = read_model(model), list(prompt), []
    for _ in range(NEW_TOKENS):
        distribution = reference(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        ids.append(int(distribution.argmax()))
        log_probs.append(float(distribution.max()))
    return ids[len(prompt) :], log_probs


def test_weight_sync_from_any_layout_equals_transformers(served):
    for number, (name, layout) in enumerate(LAYOUTS[served.family].items()):
        # Other weights each time and the same prompts: neither may be left from before.
        model = served.model(10 + number)
        report = served.run("send", model, number, layout=layout, bucket=SMALL)
        assert report["failed"] == [], name
        assert served.control.get("/weight_info") == {"weight_version": str(number)}
        for prompt in _prompts():
            tokens, log_probs = served.greedy(prompt)
            expected_tokens, expected = _reference(model, prompt)
            assert tokens == expected_tokens, name
            # Both fp32, through other kernels.
            assert log_probs == pytest.approx(expected, abs=1e-4), name


def test_weight_sync_is_the_same_in_many_buckets_and_in_one(served):
    model, *_, several = served.model(20), *LAYOUTS[served.family].values()
    served.run("send", model, 0, bucket=LARGE)
    one = served.checksums()
    served.run("send", served.model(21), 1)
    assert served.checksums() != one
    served.run("send", model, 2, layout=several, bucket=SMALL)
    assert served.checksums() == one


@pytest.mark.setting("vllm.weight_transfer_delta")
def test_weight_sync_of_changes_is_verified_in_the_server(served):
    *_, layout = LAYOUTS[served.family].values()
    # Every sync compares checksums of the weights in use, and continuations.
    reports = served.run("changes", served.model(25), 0, layout=layout, bucket=SMALL)
    assert [report["failed"] for report in reports] == [[]] * 4
    first, changed, lost, again = (report["sent_bytes"] for report in reports)
    assert lost == first
    # A place and a value for each half of every 64th value.
    assert 0 < changed <= 0.06 * first
    assert 0 < again <= 0.06 * first
    assert served.control.get("/weight_info") == {"weight_version": "4"}
    # Experts, and parts of tensors, are left to vLLM's loader.
    is_direct = (served.family, served.workers) not in (("qwen3_moe", 1), ("llama_tied", 2))
    assert served.says("put straight into the model") == is_direct


@pytest.mark.slow
def test_weight_sync_of_changes_is_verified_in_bf16(tmp_path):
    # Other kernels than fp32: those of AMX, where the processor has it.
    with serving("llama_tied", tmp_path, dtype="bfloat16") as served:
        reports = served.run("changes", served.model(25), 0, bucket=SMALL, precision="bf16")
        assert [report["failed"] for report in reports] == [[]] * 4
        first, changed, *_ = (report["sent_bytes"] for report in reports)
        assert 0 < changed <= 0.06 * first
        assert served.says("put straight into the model")


def test_weight_sync_keeps_a_request_in_flight(llama):
    llama.run("send", llama.model(30), 40)
    for version in range(41, 46):
        found = llama.run("in_flight", llama.model(version), version)
        assert found["failed"] == []
        assert found["lengths"] == [4000, 4000]
        if len(found["versions"]) == 2:
            break  # Otherwise a busy machine sent the weights after the last token.
    (first, begin, cut), (last, again, end) = found["versions"]
    assert (first, last) == (str(version - 1), str(version))
    assert (begin, end) == (0, 4000)
    assert 0 < cut == again < 4000


def test_weight_sync_reports_a_missing_server_and_updates_others(llama):
    gone = f"http://127.0.0.1:{free_port()}"
    report = llama.run("send", llama.model(40), 6, others=gone, layout=(2, TP2))
    assert report["failed"] == [gone]
    assert llama.control.get("/weight_info") == {"weight_version": "6"}


def test_weight_sync_recovers_a_server_lost_in_the_middle(llama):
    seen = []

    def watch(data: bytes) -> None:
        seen.append(data.count(b"POST /update_weights"))
        if sum(seen) == 3:  # Three buckets of more than ten.
            proxy.close()

    with proxy_to(llama.control.url, watch) as proxy:
        report = llama.run("send", llama.model(45), 8, url=proxy.url, bucket=SMALL, layout=(2, TP2))
    assert report["failed"] == [proxy.url]
    assert llama.control.get("/weight_info") != {"weight_version": "8"}
    assert llama.run("send", llama.model(46), 9, bucket=SMALL)["failed"] == []
    tokens, _ = llama.greedy(_prompts()[0])
    assert tokens == _reference(llama.model(46), _prompts()[0])[0]


def test_verify_weights_finds_the_last_bit_of_one_element(llama):
    error = llama.run("corrupt", llama.model(50), 7)
    assert "weights of version 3" in error
    assert llama.control.url in error
    assert "model.layers.1.mlp.down_proj.weight" in error


def test_verify_weights_finds_a_cache_of_older_weights(llama):
    llama.run("send", llama.model(60), 8)
    error = llama.run("stale_cache", llama.model(61), 9)
    assert "and the trainer differ after a prompt of 300 tokens" in error
