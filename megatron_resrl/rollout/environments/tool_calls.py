"""Tools that the policy calls, in the format of Hermes and Qwen models.

    <tool_call>{"name": "calculator", "arguments": {"expression": "12 * (7 + 1)"}}</tool_call>

is answered with the tool's result. A turn without a call is the answer, which the run's reward
function grades.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from megatron_resrl.data.records import PromptRecord
from megatron_resrl.rollout.environments.environment import Observation

Role = Literal["tool", "user"]
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


class Tool(Protocol):
    """Answers calls; shared by all episodes of a process, and called from several threads."""

    name: str
    """By which it is called."""
    form: str
    """What its arguments look like, as JSON."""

    def run(self, arguments: Mapping[str, Any]) -> str:
        """The result.

        Args:
            arguments: As the call has them.

        Raises:
            ValueError: There is none; says what was wrong with the call, which the policy reads.
        """
        ...


class ToolEnvironment:
    """Answers all calls of a turn, in order, in one message; ends where a turn has none."""

    def __init__(self, tools: Sequence[Tool], role: Role = "tool") -> None:
        """
        Args:
            tools: At least one.
            role: Who says the results, for chat templates that know no tools: user.
        """
        self.role = role
        self._tools = {tool.name: tool for tool in tools}

    def reset(self, record: PromptRecord, seed: tuple[int, ...]) -> None:
        """Tools remember nothing."""

    def step(self, action: str) -> Observation:
        """See `Environment.step`. The answer to a call that cannot be run is an error message."""
        calls = _CALL.findall(action)
        if not calls:
            return Observation(done=True)
        return Observation("\n".join(self._answer(call) for call in calls))

    def _answer(self, call: str) -> str:
        try:
            tool, arguments = self._read(call)
            return tool.run(arguments)
        except ValueError as error:
            return f"error: {error}"

    def _read(self, call: str) -> tuple[Tool, Mapping[str, Any]]:
        """The tool that a call is for, and its arguments.

        Raises:
            ValueError: The call is broken, or for another tool.
        """
        forms = " or ".join(_call_of(tool) for tool in self._tools.values())
        try:
            parsed = json.loads(call)
        except (ValueError, RecursionError):
            raise ValueError(f"the call is not JSON like {forms}") from None
        name = parsed.get("name") if isinstance(parsed, dict) else None
        tool = self._tools.get(name) if isinstance(name, str) else None
        if tool is None:
            known = ", ".join(self._tools)
            only = "the only tool is" if len(self._tools) == 1 else "the tools are"
            raise ValueError(f"{only} {known}; a call is like {forms}")
        arguments = parsed.get("arguments")
        if not isinstance(arguments, dict):
            raise ValueError(f"the call is not like {_call_of(tool)}")
        return tool, arguments


def text_argument(arguments: Mapping[str, Any], name: str) -> str:
    """An argument that has to be a text.

    Raises:
        ValueError: It is absent, or something else.
    """
    value = arguments.get(name)
    if not isinstance(value, str):
        raise ValueError(f"the argument {name} is not a text")
    return value


def shortened(text: str, limit: int) -> str:
    """The beginning and the end of a result with more than `limit` characters."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[{len(text) - 2 * half} characters left out]\n{text[-half:]}"


def _call_of(tool: Tool) -> str:
    return f'{{"name": "{tool.name}", "arguments": {tool.form}}}'
