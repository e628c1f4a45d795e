"""A calculator that the policy calls, in the format of Hermes and Qwen models.

    <tool_call>{"name": "calculator", "arguments": {"expression": "12 * (7 + 1)"}}</tool_call>

is answered with the result in a message of the tool, 96. A turn without a call is the answer, which
the run's reward function grades.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from megatron_resrl.rollout.environments.tool_calls import Role, ToolEnvironment, text_argument

MAX_CHARACTERS = 200
"""Of an expression."""
MAX_BITS = 1024
"""Of an integer on the way: what makes every expression quick."""

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


class CalculatorTool:
    """See `Tool`."""

    name = "calculator"
    form = '{"expression": "..."}'

    def run(self, arguments: Mapping[str, Any]) -> str:
        """The value of the argument `expression`, see `calculate`."""
        return _shown(calculate(text_argument(arguments, "expression")))


class Calculator(ToolEnvironment):
    """The environment whose only tool is the calculator."""

    def __init__(self, role: Role = "tool") -> None:
        """
        Args:
            role: Who says the results, for chat templates that know no tools: user.
        """
        super().__init__([CalculatorTool()], role)


def calculate(expression: str) -> int | float:
    """The value of an arithmetic expression: numbers, + - * / // % ** and parentheses.

    Raises:
        ValueError: It is something else, too long, or a number on the way is too large.
    """
    if len(expression) > MAX_CHARACTERS:
        raise ValueError(f"the expression is longer than {MAX_CHARACTERS} characters")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
        return _bounded(_value(tree.body))
    except ZeroDivisionError:
        raise ValueError("division by zero") from None
    except OverflowError:
        raise ValueError("the result is too large") from None
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError("this is not an arithmetic expression") from None


def _value(node: ast.expr) -> int | float:
    if isinstance(node, ast.Constant):
        number = node.value
        if isinstance(number, int | float) and not isinstance(number, bool):
            return _bounded(number)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow):
            return _bounded(_power(left, right))
        if type(node.op) in _BINARY:
            return _bounded(_BINARY[type(node.op)](left, right))
    raise ValueError("only numbers, + - * / // % ** and parentheses are known")


def _power(base: int | float, exponent: int | float) -> int | float:
    if isinstance(base, int) and abs(base) > 1 and abs(exponent) * base.bit_length() > MAX_BITS:
        raise ValueError("the power is too large")
    if base < 0 and not float(exponent).is_integer():
        raise ValueError("a negative number has no such power")
    return base**exponent


def _bounded(value: int | float) -> int | float:
    if isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise ValueError("the number is too large")
    elif abs(value) == float("inf") or value != value:
        raise ValueError("the result is not a finite number")
    return value


def _shown(value: int | float) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return str(value) if isinstance(value, int) else format(value, ".12g")
