"""The client of OpenEnv servers, against a server that speaks the protocol over real sockets."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from openenv_servers import openenv_server

pytest.importorskip("websockets", reason="needs websockets: megatron-resrl[openenv]")

from websockets.sync.server import ServerConnection, serve

from megatron_resrl.data.records import PromptRecord
from megatron_resrl.rollout.environments.openenv import OpenEnv, OpenEnvClient, ServerFailed

RECORD = PromptRecord(0, [{"role": "user", "content": "play"}], "", "test", {"level": 2})


def observation(text: object, reward: object = None, done: bool = False) -> str:
    data = {"observation": {"said": {"text": text}}, "reward": reward, "done": done}
    return json.dumps({"type": "observation", "data": data})


def echo(connection: ServerConnection) -> None:
    """Says what it was told; a reward of 0.5 for each step, the end at `stop`."""
    if connection.request.path != "/ws":
        return
    steps = 0
    for text in connection:
        message = json.loads(text)
        kind, data = message["type"], message.get("data")
        if kind == "reset":
            steps = 0
            connection.send(observation(f"reset {json.dumps(data)}"))
        elif kind == "step":
            steps += 1
            connection.send(observation(json.dumps(data), 0.5, data.get("message") == "stop"))
        elif kind == "state":
            answer = {"type": "state", "data": {"step_count": steps}}
            connection.send(json.dumps(answer))
        elif kind == "close":
            return


@contextmanager
def server(handler: Callable[[ServerConnection], None]) -> Iterator[str]:
    with serve(handler, "127.0.0.1", 0) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.socket.getsockname()[1]}"
        finally:
            listening.shutdown()
            thread.join()


def test_open_env_plays_an_episode() -> None:
    options = {"observation_key": "said.text", "reset_columns": ["level"]}
    with server(echo) as url:
        game = OpenEnv(url, action_fields={"kind": "say"}, **options)
        opening = game.reset(RECORD, (1, 2))
        assert opening is not None
        arguments = json.loads(opening.removeprefix("reset "))
        assert arguments["level"] == 2
        assert 0 <= arguments["seed"] < 2**31
        assert game.reset(RECORD, (1, 2)) == opening
        first, last = game.step("hello"), game.step("stop")
        assert json.loads(first.text) == {"kind": "say", "message": "hello"}
        assert (first.done, first.score) == (False, 0.5)
        assert (last.done, last.score) == (True, 1.0)
        game.close()


def test_open_env_takes_an_action_as_json() -> None:
    with server(echo) as url:
        game = OpenEnv(url, action_key=None, observation_key="said.text", score="last")
        game.reset(RECORD, (0,))
        assert json.loads(game.step('{"move": 3}').text) == {"move": 3}
        assert game.step('{"move": 4}').score == 0.5
        refused = game.step("{move")
        assert refused.text == "the action is not a JSON object"
        assert (refused.done, refused.score) == (False, 0.5)
        game.close()


def test_open_env_shows_a_whole_observation_as_json() -> None:
    with server(echo) as url:
        game = OpenEnv(url)
        game.reset(RECORD, (0,))
        assert json.loads(game.step("a").text) == {"said": {"text": '{"message": "a"}'}}
        game.close()


def test_open_env_client_asks_for_the_state() -> None:
    with server(echo) as url:
        client = OpenEnvClient(url)
        client.reset({})
        client.step({"message": "a"})
        assert client.state() == {"step_count": 1}
        client.close()


def answers(*texts: str) -> Callable[[ServerConnection], None]:
    def handler(connection: ServerConnection) -> None:
        for text, _ in zip(texts, connection, strict=False):
            connection.send(text)

    return handler


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("nonsense", "answered 'nonsense', not JSON"),
        ("[1]", r"answered '\[1\]' to reset"),
        ('{"type": "state", "data": {}}', "to reset"),
        (
            '{"type": "error", "data": {"code": "CAPACITY_REACHED", "message": "1 of 1"}}',
            "says CAPACITY_REACHED: 1 of 1",
        ),
        ('{"type": "observation", "data": {"observation": {"a": 1}}}', "no field 'said.text'"),
    ],
)
def test_open_env_names_what_a_server_answers_wrongly(answer: str, said: str) -> None:
    with (
        server(answers(answer)) as url,
        pytest.raises(ServerFailed, match=said),
    ):
        OpenEnv(url, observation_key="said.text").reset(RECORD, (0,))


@pytest.mark.parametrize("reward", ["high", float("nan")])
def test_open_env_refuses_a_reward_that_is_no_number(reward: object) -> None:
    texts = observation("a"), observation("b", reward)
    with server(answers(*texts)) as url:
        game = OpenEnv(url)
        game.reset(RECORD, (0,))
        with pytest.raises(ServerFailed, match="a finite number is right"):
            game.step("a")


def test_open_env_names_a_server_that_ends_the_session() -> None:
    with server(answers(observation("a"))) as url:
        game = OpenEnv(url)
        game.reset(RECORD, (0,))
        with pytest.raises(ServerFailed, match="has ended the session"):
            game.step("a")
        game.close()


def test_open_env_names_a_server_that_is_not_there() -> None:
    with server(echo) as url:
        pass
    with pytest.raises(ServerFailed, match="cannot be reached"):
        OpenEnv(url).reset(RECORD, (0,))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"url": "127.0.0.1:8000"}, "give one like http"),
        ({"url": "http://a", "score": "mean"}, "give sum or last"),
    ],
)
def test_open_env_refuses_options(options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        OpenEnv(**options)


@pytest.fixture
def real_server() -> Iterator[str]:
    with openenv_server(episodes=2) as url:
        yield url


@pytest.mark.slow
def test_open_env_plays_with_a_server_of_its_package(real_server: str) -> None:
    games = [OpenEnv(real_server, observation_key="text") for _ in range(2)]
    for seed in range(3):
        secret = random.Random(seed).randrange(8)
        record = replace(RECORD, extra={"seed": seed})
        for game in games:  # Two sessions at once.
            assert game.reset(record, (0,)) == "guess a number from 0 to 7"
        for guess in range(secret):
            hints = [game.step(str(guess)) for game in games]
            assert [each.text for each in hints] == ["higher"] * 2
        ends = [game.step(str(secret)) for game in games]
        assert [(each.text, each.done) for each in ends] == [("found", True)] * 2
        assert [each.score for each in ends] == [1.0 - 0.125 * secret] * 2
    with pytest.raises(ServerFailed, match=r"says CAPACITY_REACHED|ended the session"):
        OpenEnv(real_server).reset(RECORD, (0,))
    with pytest.raises(ServerFailed, match="says "):
        games[0].step("no number")
    for game in games:
        game.close()
    client = OpenEnvClient(real_server)
    client.reset({"seed": 1, "episode_id": "mine"})
    client.step({"message": "9"})
    assert client.state() == {"episode_id": "mine", "step_count": 1}
    client.close()
