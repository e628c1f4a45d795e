"""Exact values of arithmetic that a response holds, without running it."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from fractions import Fraction

LONGEST = 500
"""Characters of an expression."""

_OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_SPELLINGS = str.maketrans(
    {
        "\N{MULTIPLICATION SIGN}": "*",
        "\N{DIVISION SIGN}": "/",
        "\N{MINUS SIGN}": "-",
        "\N{MIDDLE DOT}": "*",
        "[": "(",
        "]": ")",
    }
)
_COMMANDS = {r"\times": "*", r"\cdot": "*", r"\div": "/", r"\left": "", r"\right": ""}


def evaluated(text: str) -> tuple[Fraction, list[int]] | None:
    r"""The value of sums, differences, products and quotients of whole numbers.

    Args:
        text: With parentheses; signs of Python, of print (a multiplication sign) or of LaTeX
            (`\times`).

    Returns:
        The exact value, and the numbers in their order; None: it is something else, it divides by
        zero, or it is longer than `LONGEST`.
    """
    if len(text) > LONGEST:
        return None
    for command, sign in _COMMANDS.items():
        text = text.replace(command, sign)
    numbers: list[int] = []
    try:
        tree = ast.parse(" ".join(text.translate(_SPELLINGS).split()), mode="eval")
        return _value(tree.body, numbers), numbers
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr, numbers: list[int]) -> Fraction:
    match node:
        case ast.Constant(value=int() as number) if not isinstance(number, bool):
            numbers.append(number)
            return Fraction(number)
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _OPERATIONS:
            first = _value(left, numbers)
            return _OPERATIONS[type(sign)](first, _value(right, numbers))
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_value(inner, numbers)
    raise ValueError(f"{type(node).__name__} is no arithmetic")
