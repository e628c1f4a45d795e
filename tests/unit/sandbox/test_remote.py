"""Programs on a server that speaks SandboxFusion's protocol."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from megatron_resrl.config.schema_questions import CodeConfig
from megatron_resrl.errors import SettingError
from megatron_resrl.rewards.code import code_reward
from megatron_resrl.sandbox.backends import ask_server, find_backend
from megatron_resrl.sandbox.remote import RemoteRunner, ServerError
from megatron_resrl.sandbox.runners import Missing


class Handler(BaseHTTPRequestHandler):
    """`POST /run_code`, with the fields of SandboxFusion's requests and answers."""

    broken: Any = None
    """Answered instead."""
    failures = 0
    """Requests that are answered with status 500 first."""
    seen: list[dict[str, Any]]

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = type(self)
        server.seen.append(request)
        if server.failures:
            server.failures -= 1
            self.send_error(500)
            return
        answer = self.run(request) if server.broken is None else server.broken
        content = json.dumps(answer).encode()
        self.send_response(200 if self.path == "/run_code" else 404)
        self.end_headers()
        self.wfile.write(content)

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        assert request["language"] == "python"
        with tempfile.TemporaryDirectory() as folder:
            for name, content in request["files"].items():
                Path(folder, name).write_bytes(base64.b64decode(content))
            try:
                done = subprocess.run(
                    [sys.executable, "-I", "-c", request["code"]],
                    input=request["stdin"],
                    cwd=folder,
                    capture_output=True,
                    text=True,
                    timeout=request["run_timeout"],
                )
            except subprocess.TimeoutExpired:
                result = {"status": "TimeLimitExceeded", "return_code": None, "stdout": ""}
                return {"status": "Failed", "message": "", "run_result": result}
        result = {
            "status": "Finished",
            "execution_time": 0.1,
            "return_code": done.returncode,
            "stdout": done.stdout,
            "stderr": done.stderr,
        }
        status = "Failed" if done.returncode else "Success"
        return {"status": status, "message": "", "run_result": result, "files": {}}

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[tuple[str, type[Handler]]]:
    """Address and handler of a server."""
    handler = type("Own", (Handler,), {"seen": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", handler
        server.shutdown()
        thread.join()


def test_remote_runs_programs(server: tuple[str, type[Handler]]) -> None:
    url, handler = server
    runner = RemoteRunner(url, 20.0, 300)
    ran = runner.run("print(input()[::-1])\nexit(3)", "abc\n")
    assert (ran.code, ran.output) == (3, b"cba\n")
    assert handler.seen[0]["memory_limit_MB"] == 300
    slow = RemoteRunner(url, 0.2, 300).run("import time\ntime.sleep(20)", "")
    assert (slow.code, slow.why) == (None, "time")


def test_remote_calls_functions(server: tuple[str, type[Handler]]) -> None:
    url, _ = server
    runner = RemoteRunner(url, 20.0, 300)
    source = (
        'print(\'{"tuple": ["value", 1]}\')\n'
        "def f(x):\n    print('noise')\n    return (x, {x: [x]}) if x else 1 / 0\n"
        "class Solution:\n    def g(self, x): return x\n"
    )
    first, second = runner.call(source, "f", [[1], [0]])
    assert first == (1, {1: [1]})
    assert isinstance(second, Missing)
    assert list(runner.call(source, "g", [[7]])) == [7]
    ended = list(runner.call("import os\nos._exit(0)", "f", [[1], [2]]))
    assert all(isinstance(each, Missing) for each in ended)


@pytest.mark.setting("reward.code.url")
def test_code_reward_asks_the_server_of_the_settings(server: tuple[str, type[Handler]]) -> None:
    url, handler = server
    settings = CodeConfig(backend="remote", url=url, timeout_s=20.0)
    ask_server(settings)
    asked = len(handler.seen)
    tests = {"inputs": ["1"], "outputs": ["2"]}
    assert code_reward("```\nprint(2)\n```", tests, settings=settings) == 1.0
    assert code_reward("```\nprint(3)\n```", tests, settings=settings) == 0.0
    assert len(handler.seen) == asked + 2
    with pytest.raises(ValueError, match="asserts need a sandbox on this machine"):
        code_reward("```\nf = 1\n```", ["assert f(1)"], settings=settings)


def test_remote_tries_again_before_it_gives_up(server: tuple[str, type[Handler]]) -> None:
    url, handler = server
    handler.failures = 2
    runner = RemoteRunner(url, 20.0, 300)
    assert runner.run("print(1)", "").output == b"1\n"
    handler.failures = 3
    with pytest.raises(
        ServerError, match="does not run programs, tried 3 times: Server error '500"
    ):
        runner.run("print(1)", "")


@pytest.mark.parametrize(
    "answer",
    [
        {"status": "SandboxError", "message": "no room"},
        {"status": "Success"},
        {"status": "Success", "run_result": None},
        ["Success"],
        "Success",
    ],
)
def test_remote_refuses_answers_of_no_program(
    server: tuple[str, type[Handler]], answer: Any
) -> None:
    url, handler = server
    handler.broken = answer
    with pytest.raises(ServerError):
        RemoteRunner(url, 1.0, 300).run("print(1)", "")
    with pytest.raises(SettingError, match=r"reward.code.url = .*start SandboxFusion there"):
        ask_server(CodeConfig(backend="remote", url=url))


def test_remote_needs_an_address() -> None:
    with pytest.raises(SettingError, match=r"no server is named; set reward.code.url"):
        find_backend(CodeConfig(backend="remote"))
