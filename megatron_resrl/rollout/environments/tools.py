"""Several tools in one environment."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from megatron_resrl.config.schema_questions import CodeConfig
from megatron_resrl.errors import closest
from megatron_resrl.rollout.environments.calculator import CalculatorTool
from megatron_resrl.rollout.environments.python_tool import PythonTool
from megatron_resrl.rollout.environments.search import SearchTool
from megatron_resrl.rollout.environments.tool_calls import Role, Tool, ToolEnvironment

_KINDS: dict[str, Callable[..., Tool]] = {
    kind.name: kind for kind in (CalculatorTool, PythonTool, SearchTool)
}


class Tools(ToolEnvironment):
    """The environment of all tools that a recipe names."""

    def __init__(
        self,
        tools: Mapping[str, Mapping[str, Any] | None],
        role: Role = "tool",
        code: CodeConfig | None = None,
    ) -> None:
        """
        Args:
            tools: Name -> options of each tool: `calculator`, `python`, `search`.
            role: Who says the results, for chat templates that know no tools: user.
            code: How programs are run; None: the defaults.

        Raises:
            ValueError: There is no such tool, or none at all; a tool refuses its options.
            TypeError: A tool does not take its options.
        """
        if not tools:
            raise ValueError(f"tools is empty; name some of {', '.join(_KINDS)}")
        kinds = _KINDS | {PythonTool.name: functools.partial(PythonTool, code=code)}
        for name in tools:
            if name not in kinds:
                near = closest(name, kinds)
                hint = f"did you mean {near!r}?" if near else f"they are {', '.join(kinds)}"
                raise ValueError(f"there is no tool {name!r}; {hint}")
        super().__init__([kinds[name](**(options or {})) for name, options in tools.items()], role)
