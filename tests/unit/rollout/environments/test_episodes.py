"""Environments that fail or are slow: what becomes of their episodes, and of the others."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_resrl.config.schema import Recipe, RolloutConfig
from megatron_resrl.data.records import Prompt, PromptRecord
from megatron_resrl.data.tokenizer import load_tokenizer
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.engine import GenerationRequest, Response, SamplingParams
from megatron_resrl.rollout.engines.factory import make_engine
from megatron_resrl.rollout.environments.metrics import episode_metrics
from megatron_resrl.rollout.environments.running import EnvironmentFailed

GAMES = """\
import os, threading, time

from megatron_resrl.rollout.environments.environment import Observation

FAST_IS_OVER = threading.Event()

class Counting:
    \"\"\"Ends after three turns, with a score of 0.5.\"\"\"

    role = "user"

    def reset(self, record, seed):
        self.kind, self.turns = record.extra.get("kind"), 0
        if self.kind == "reset":
            raise LookupError("no board")

    def step(self, action):
        self.turns += 1
        if self.turns == 2:
            if self.kind == "raised":
                raise LookupError("no square")
            if self.kind == "exit":
                os._exit(3)
            if self.kind == "abort":
                os.abort()
            if self.kind == "late":
                while True:
                    pass
            if self.kind == "malformed":
                return "higher"
            if self.kind == "score":
                return Observation("higher", score=float("nan"))
        if self.kind == "slow" and not FAST_IS_OVER.wait(60):
            raise TimeoutError("the fast episodes are not over")
        done = self.turns == 3
        if done and self.kind is None:
            FAST_IS_OVER.set()
        return Observation("7 8", done, 0.5)

class OneFails(Counting):
    def reset(self, record, seed):
        super().reset(record, seed)
        try:  # One of all samples, in whichever process.
            os.close(os.open(record.extra["mark"], os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return "9 9"
        raise LookupError("no board")

class Processes(Counting):
    def step(self, action):
        super().step(action)
        return Observation("7 8", self.turns == 3, float(os.getpid()))
"""
SAMPLING = SamplingParams(24, tuple(range(40)), n=2)
"""Most tokens end a turn."""
Play = Callable[..., list[list[Response]]]


@pytest.fixture
def play(tmp_path: Path, recipe: Recipe, policy: Policy) -> Play:
    """Plays two samples of a prompt of each kind."""
    file = tmp_path / "failing_games.py"
    file.write_text(GAMES)

    def played(
        *kinds: str | None, name: str = "Counting", timeout_s: float = 60.0, **settings: object
    ) -> list[list[Response]]:
        prompts = [
            Prompt(
                PromptRecord(
                    index,
                    [{"role": "user", "content": "5 6"}],
                    "",
                    "test",
                    {"kind": kind, "mark": str(tmp_path / f"mark_{index}")},
                ),
                (5, 6),
            )
            for index, kind in enumerate(kinds)
        ]
        settings = {"environment": f"{file}:{name}", **settings}
        whole = replace(
            recipe,
            rollout=RolloutConfig(**settings),
            reward=replace(recipe.reward, timeout_s=timeout_s),
        )
        engine = make_engine(whole, policy, load_tokenizer(recipe.model), trainable=False)
        try:
            return engine.generate(GenerationRequest.of_prompts(prompts, SAMPLING, (4, 2)))
        finally:
            engine.close()
            assert not multiprocessing.active_children()

    return played


def turns(response: Response) -> int:
    mask = response.response_mask or (True,)
    return sum(drawn and not before for before, drawn in zip((False, *mask), mask, strict=False))


@pytest.mark.setting("rollout.environment_failure")
@pytest.mark.parametrize(
    ("kind", "reason", "played_turns"),
    [
        ("raised", "raised", 2),
        ("reset", "raised", 1),
        ("exit", "crashed", 2),
        ("abort", "crashed", 2),
        ("late", "late", 2),
        ("malformed", "malformed", 2),
        ("score", "malformed", 2),
    ],
)
def test_episodes_that_fail_score_zero(
    play: Play, kind: str, reason: str, played_turns: int
) -> None:
    settings = {"environment_processes": 4, "environment_failure": "zero"}
    timeout_s = 0.5 if kind == "late" else 60.0
    failed, good = play(kind, None, timeout_s=timeout_s, **settings)
    for each in failed:
        assert (each.failure, each.score, each.finish_reason) == (reason, 0.0, "length")
        assert turns(each) == played_turns
    assert [each.token_ids for each in good] == [each.token_ids for each in play(None, None)[1]]
    assert {(each.score, each.failure) for each in good} == {(0.5, None)}
    metrics = episode_metrics([*failed, *good])
    assert metrics["episode/failed"] == metrics[f"episode/failed_{reason}"] == 0.5


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("raised", r"raised LookupError: no square \(step, turn 1 of sample \d of prompt 1"),
        ("reset", r"raised LookupError: no board \(reset, sample \d of prompt 1 of test\)"),
        ("exit", "ended its process with exit status 3"),
        ("abort", "ended its process with signal 6"),
        ("late", r"did not return within reward\.timeout_s = 0\.5 seconds"),
        ("malformed", "step returned 'higher', which is not an Observation with a text"),
        ("score", "step returned nan, which is not a finite score"),
    ],
)
def test_episodes_that_fail_end_the_run(play: Play, kind: str, said: str) -> None:
    timeout_s = 0.5 if kind == "late" else 60.0
    with pytest.raises(EnvironmentFailed, match=said):
        play(None, kind, environment_processes=2, timeout_s=timeout_s)


def test_episodes_that_fail_in_threads_score_zero(play: Play) -> None:
    failed, good = play("raised", None, environment_failure="zero")
    assert {each.failure for each in failed} == {"raised"}
    assert {each.failure for each in good} == {None}


@pytest.mark.parametrize("count", [0, 1, 2])
def test_episode_without_environment_opens_as_its_group(play: Play, count: int) -> None:
    settings = {"environment_processes": count, "environment_failure": "zero"}
    [group] = play(None, name="OneFails", **settings)
    assert sorted(each.failure or "" for each in group) == ["", "raised"]
    assert {each.opening and each.opening.prompt_ids for each in group} == {(5, 6, 9, 9)}
    lost = next(each for each in group if each.failure)
    assert (turns(lost), lost.score, lost.finish_reason) == (1, 0.0, "length")


@pytest.mark.setting("rollout.environment_patience_s")
def test_episodes_do_not_wait_for_slow_ones(play: Play) -> None:
    slow, fast = play("slow", None, environment_patience_s=0.1)
    for each in (*slow, *fast):
        assert (turns(each), each.failure) == (3, None)


@pytest.mark.setting("rollout.environment_processes")
def test_episodes_take_processes_in_turn(play: Play) -> None:
    kinds = [None] * 4
    for count in (1, 3):
        found = [
            each
            for group in play(*kinds, name="Processes", environment_processes=count)
            for each in group
        ]
        processes = {each.score for each in found}
        assert float(os.getpid()) not in processes
        assert len(processes) <= count


def test_episodes_are_the_same_in_threads_and_processes(play: Play) -> None:
    threads = play(None, None, None)
    for count in (1, 2):
        in_processes = play(None, None, None, environment_processes=count)
        for one, other in zip(threads, in_processes, strict=True):
            assert [each.token_ids for each in one] == [each.token_ids for each in other]
            for mine, theirs in zip(one, other, strict=True):
                # fp32, with other rows beside it.
                assert mine.log_probs == pytest.approx(theirs.log_probs, abs=2e-5)
