"""A Python interpreter that the policy calls; programs run in the sandbox of the reward `code`.

    <tool_call>{"name": "python", "arguments": {"code": "print(6 * 7)"}}</tool_call>

is answered with what the program prints, 42.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from megatron_resrl.config.schema_questions import CodeConfig
from megatron_resrl.rollout.environments.running import AT_ONCE
from megatron_resrl.rollout.environments.tool_calls import (
    Role,
    ToolEnvironment,
    shortened,
    text_argument,
)
from megatron_resrl.sandbox.backends import make_runner
from megatron_resrl.sandbox.runners import Runner
from megatron_resrl.sandbox.sandbox import Ran


class PythonTool:
    """Runs each call as a program of its own: nothing of it is left for the next."""

    name = "python"
    form = '{"code": "..."}'

    def __init__(self, max_characters: int = 2000, code: CodeConfig | None = None) -> None:
        """
        Args:
            max_characters: Of a result; the middle of a longer one is left out.
            code: Of the sandbox; None: the defaults.

        Raises:
            ValueError: `max_characters` is too small for any result.
        """
        if max_characters < 1:
            raise ValueError(f"max_characters is {max_characters}; give at least 1")
        self._limit = max_characters
        self._settings = code or CodeConfig()

    def run(self, arguments: Mapping[str, Any]) -> str:
        """What the program in the argument `code` prints, and how it failed.

        Raises:
            ValueError: There is no program.
            SettingError: There is no sandbox.
            ServerError: The server of `reward.code.url` cannot be used.
        """
        program = text_argument(arguments, "code")
        ran = _threads(self._settings).submit(_run, self._settings, program).result()
        printed = ran.output.decode(errors="replace").rstrip()
        lines = [shortened(printed, self._limit)] if printed else []
        if problem := self._problem(ran):
            lines.append(f"error: {problem}")
        return "\n".join(lines) or "the program printed nothing"

    def _problem(self, ran: Ran) -> str:
        """How the program failed; empty: it did not."""
        if ran.why == "time":
            return f"the program took longer than {self._settings.timeout_s:g} seconds"
        if ran.why == "output":
            return "the program printed too much"
        if ran.why == "lost" or ran.code is None:
            return "the program was ended"
        if ran.code == 0:
            return ""
        lines = ran.errors.decode(errors="replace").strip().splitlines()
        said = lines[-1] if lines else f"the program ended with status {ran.code}"
        return shortened(said, self._limit)


class Python(ToolEnvironment):
    """The environment whose only tool is the interpreter."""

    def __init__(
        self, role: Role = "tool", max_characters: int = 2000, code: CodeConfig | None = None
    ) -> None:
        """
        Args:
            role: Who says the results, for chat templates that know no tools: user.
            max_characters: See `PythonTool`.
            code: See `PythonTool`.
        """
        super().__init__([PythonTool(max_characters, code)], role)


_of_thread = threading.local()


@functools.cache
def _threads(settings: CodeConfig) -> ThreadPoolExecutor:
    """Threads that outlive a call, because a sandbox ends with the thread that started it.

    There are as many as there are calls at once, so that none waits within its time for another.
    """
    return ThreadPoolExecutor(AT_ONCE, thread_name_prefix="python-tool")


def _run(settings: CodeConfig, program: str) -> Ran:
    """Runs a program in the sandbox of this thread."""
    runner: Runner | None = getattr(_of_thread, "runner", None)
    if runner is None:
        runner = _of_thread.runner = make_runner(settings)
    return runner.run(program, "")
