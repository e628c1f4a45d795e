"""Rewards that a server gives."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from answering import Answer, Request, answering

from megatron_resrl.config.schema import RewardConfig
from megatron_resrl.errors import InputError
from megatron_resrl.rewards import served
from megatron_resrl.rewards.grader import Grade, GradingTask, RewardError
from megatron_resrl.rewards.grader_pools import GraderPools
from megatron_resrl.rewards.judge import JudgeReward
from megatron_resrl.rewards.registry import load_reward

Graded = Any


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "FIRST_WAIT_S", 0.001)


class Server:
    """Answers requests for scores as a test says, and keeps them."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.before: list[Answer] = []
        """Given first, one for each request."""
        self.wait = 0.0
        self.at_once = 0
        self.most_at_once = 0
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Answer:
        with self._lock:
            self.asked.append(request)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            early = self.before.pop(0) if self.before else None
        time.sleep(self.wait)
        with self._lock:
            self.at_once -= 1
        return early or (200, self.said(request.body))

    def said(self, body: dict[str, Any]) -> Any:
        if "items" in body:
            return {"scores": [float(len(item["response"])) for item in body["items"]]}
        if "messages" in body:
            return {"choices": [{"message": {"content": body["messages"][0]["content"]}}]}
        return {"score": float(len(body["response"]))}


@pytest.fixture
def server() -> Server:
    return Server()


@contextmanager
def grading(
    server: Server, tmp_path: Path, name: str = "remote", timeout_s: float = 10.0, **options: Any
) -> Iterator[Graded]:
    with answering(server) as url:
        reward = RewardConfig(function=name, options={"url": url, **options}, timeout_s=timeout_s)
        with GraderPools([reward], tmp_path / "log") as pools:
            yield pools.of(reward)


def task(response: str) -> GradingTask:
    return GradingTask(response, {"a": [1]}, "the prompt", "the source", {"k": 2}, "prompt 0")


def test_remote_sends_the_sample_and_reads_the_score(server, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("KEY_OF_THE_SERVER", "secret")
    with grading(server, tmp_path, api_key_env="KEY_OF_THE_SERVER") as grader:
        assert grader.grade([task("abc"), task("")]) == [Grade(3.0, False), Grade(0.0, False)]
        assert grader.check_ground_truths([None, {"a": 1}]) == [None, None]
    bodies = {request.body["response"]: request.body for request in server.asked}
    assert bodies["abc"] == {
        "response": "abc",
        "ground_truth": {"a": [1]},
        "prompt": "the prompt",
        "data_source": "the source",
        "extra": {"k": 2},
    }
    assert {request.authorization for request in server.asked} == {"Bearer secret"}


def test_remote_batches_and_asks_once_for_equal_responses(server, tmp_path) -> None:
    words = ["a", "bb", "a", "ccc", "bb", "dddd"]
    with grading(server, tmp_path, batch_size=3) as grader:
        scores = [grade.score for grade in grader.grade([task(word) for word in words])]
        assert scores == [1.0, 2.0, 1.0, 3.0, 2.0, 4.0]
        sizes = sorted(len(request.body["items"]) for request in server.asked)
        assert sizes == [1, 3]
        assert grader.grade([task("dddd"), task("eeeee")])[1] == Grade(5.0, False)
    assert [item["response"] for item in server.asked[-1].body["items"]] == ["eeeee"]


def test_remote_cache_is_bounded(server, tmp_path) -> None:
    with grading(server, tmp_path, cache=1) as grader:
        for word in ("a", "a", "bb", "a"):
            grader.grade([task(word)])
    assert [request.body["response"] for request in server.asked] == ["a", "bb", "a"]


def test_remote_asks_as_often_at_once_as_it_may(server, tmp_path) -> None:
    server.wait = 0.2
    with grading(server, tmp_path, concurrency=3) as grader:
        grader.grade([task("a" * size) for size in range(7)])
    assert server.most_at_once == 3


@pytest.mark.parametrize("failure", [(500, "busy"), (429, "slow down"), (503, "")])
def test_remote_tries_again_where_that_may_help(server, tmp_path, failure) -> None:
    server.before = [failure] * 2
    with grading(server, tmp_path) as grader:
        assert grader.grade([task("abc")]) == [Grade(3.0, False)]
        server.before = [failure] * 3
        assert grader.grade([task("abcd")]) == [Grade(0.0, False, unanswered=True)]
        assert grader.grade([task("abcd")]) == [Grade(4.0, False)]  # No failure is kept.
    assert len(server.asked) == 3 + 3 + 1


def test_remote_counts_a_server_that_is_late(server, tmp_path) -> None:
    server.wait = 1.0
    with grading(server, tmp_path, timeout_s=0.2, tries=2) as grader:
        assert grader.grade([task("abc")]) == [Grade(0.0, timed_out=True)]
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    "nonsense",
    ["no JSON", "[]", '{"score": "1"}', '{"score": NaN}', '{"score": true}', '{"points": 1}', "7"],
)
def test_remote_nonsense_is_counted_and_not_kept(server, tmp_path, nonsense) -> None:
    server.before = [(200, nonsense)]
    with grading(server, tmp_path) as grader:
        assert grader.grade([task("abc")]) == [Grade(0.0, False, unanswered=True)]
        assert grader.grade([task("abc")]) == [Grade(3.0, False)]


def test_remote_nonsense_in_a_batch_costs_its_own_score(server, tmp_path) -> None:
    server.before = [(200, {"scores": [1.5, None]}), (200, {"scores": [1.5]})]
    with grading(server, tmp_path, batch_size=2) as grader:
        lost = Grade(0.0, False, unanswered=True)
        assert grader.grade([task("a"), task("bb")]) == [Grade(1.5, False), lost]
        assert grader.grade([task("ccc"), task("dddd")]) == [lost, lost]


def test_remote_refusal_ends_the_run_with_its_words(server, tmp_path) -> None:
    server.before = [(401, "who are you?")]
    with (
        grading(server, tmp_path) as grader,
        pytest.raises(RewardError, match=r"status 401, 'who are you\?'.*\n.*prompt 0"),
    ):
        grader.grade([task("abc")])
    assert len(server.asked) == 1


def test_judge_asks_a_model_and_reads_its_verdict(server, tmp_path) -> None:
    options = {"model": "judge-1", "template": "{prompt}|{ground_truth}|{response}"}
    with grading(server, tmp_path, "judge", **options) as grader:
        # This server's model says the question back.
        responses = ["<think>Score: 0</think>{prompt} Score: 1", "Verdict: no", "I cannot tell"]
        grades = grader.grade([task(response) for response in responses])
    assert grades == [
        Grade(1.0, False),
        Grade(0.0, False),
        Grade(0.0, False, unanswered=True),
    ]
    asked = {request.body["messages"][0]["content"]: request for request in server.asked}
    first = asked["the prompt|{'a': [1]}|{prompt} Score: 1"]
    assert first.route == "/chat/completions"
    assert (first.body["model"], first.body["temperature"]) == ("judge-1", 0.0)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Verdict: correct", 1.0),
        ("**Verdict:** Incorrect.", 0.0),
        ("Verdict: correct ... no. Verdict: incorrect", 0.0),
        ("<think>Verdict: correct</think>\nVerdict: no", 0.0),
        ("Score: 4", 0.4),
        ("Score: 7.5 / 10", 0.75),
        ("final score = 0", 0.0),
        ("Score: 11", None),
        ("Score: -1", None),
        ("Score: 3/2", None),
        ("It is correct.", None),
        ("", None),
        ("<think>Verdict: correct</think>", None),
    ],
)
def test_judge_verdict_is_the_last_one_said(said: str, expected: float | None) -> None:
    assert JudgeReward(url="http://j/v1", model="m", max_score=10.0).verdict(said) == expected


def test_judge_shows_question_answer_and_reference() -> None:
    content = JudgeReward(url="http://j/v1", model="m", max_tokens=9).content(task("abc"))
    assert content["max_tokens"] == 9
    question = content["messages"][0]["content"]
    assert all(part in question for part in ("the prompt", "{'a': [1]}", "abc"))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("remote", {}, "the function remote needs the option url; give url"),
        ("remote", {"url": "host:80"}, "url is 'host:80'; give an address like http://"),
        ("remote", {"url": "http://h", "tries": 0}, "tries is 0, out of range"),
        ("remote", {"url": "http://h", "models": "m"}, "takes no option 'models'"),
        ("judge", {"url": "http://h"}, "needs the option model"),
        ("judge", {"url": "http://h", "modl": "m"}, "'modl'; did you mean model"),
        ("judge", {"url": "http://h", "model": "m", "template": "x"}, "write {response} into it"),
    ],
)
def test_load_reward_refuses_servers_that_are_no_use(
    name: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError) as caught:
        load_reward(name, options)
    assert str(caught.value).startswith("reward.options = ")
    assert said in str(caught.value)


def test_remote_refuses_a_key_that_is_not_there(tmp_path: Path) -> None:
    options = {"url": "http://h", "api_key_env": "NO_SUCH_KEY_HERE"}
    with pytest.raises(InputError, match=r"NO_SUCH_KEY_HERE.*no such environment variable"):
        GraderPools([RewardConfig(function="remote", options=options)], tmp_path / "log")
