"""Whether two values that math-verify has read are the same number, however small or large."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sympy
from sympy import Basic, Expr, Float, Interval, MatrixBase, Rational, Tuple
from sympy.core.expr import UnevaluatedExpr
from sympy.core.relational import Equality, Relational

DECIMAL_PLACES = 6
"""To which a decimal answer may be rounded; math-verify's `float_rounding`."""
RELATIVE_ERROR = 5e-4
"""Of a decimal answer, largest; it decides below 0.001, where `DECIMAL_PLACES` say little."""
ZERO = 1e-60
"""Difference, relative to the numbers, of what is written differently but the same."""

_ODD = (ArithmeticError, AttributeError, NotImplementedError, RecursionError, TypeError, ValueError)
"""What sympy raises for values that it cannot evaluate or compare."""
_DIGITS = 15
_MOST_DIGITS = 300
_HUGE = 10**5
"""Digits from which on whole numbers are not written out."""
_POINT = tuple(Rational(upper, lower) for upper, lower in ((37, 29), (71, 43), (53, 47), (83, 61)))
"""Values of the letters where two expressions are compared."""


def same_number(gold: Any, answer: Any) -> bool | None:
    """Whether two numbers are equal; None: they are not both numbers, or odd ones.

    Exact numbers are compared exactly. A number with a decimal point may differ by rounding to
    `DECIMAL_PLACES`, but not by more than `RELATIVE_ERROR`. 9% is both 9 and 0.09, unless the other
    one is a percentage too.
    """
    try:
        return _same(gold, answer) if _is_number(gold) and _is_number(answer) else None
    except _ODD:
        return None


def _same(gold: Expr, answer: Expr) -> bool:
    decimal = gold.has(Float) or answer.has(Float)
    gold, gold_percent = _without_percent(gold)
    answer, answer_percent = _without_percent(answer)
    if _close(_exact(gold), _exact(answer), decimal):
        return True
    if gold_percent == answer_percent:
        return False
    if gold_percent:
        gold = sympy.Mul(gold, Rational(1, 100))
    else:
        answer = sympy.Mul(answer, Rational(1, 100))
    return _close(_exact(gold), _exact(answer), decimal)


def contradicts(gold: Any, answer: Any) -> bool:
    """Whether two values, parts of them, or their values at a point, are different numbers.

    math-verify rounds absolutely, so that it takes x/2^99 and x/2^98 for equal.
    """
    try:
        return any(same_number(one, other) is False for one, other in _pairs(gold, answer))
    except _ODD:
        return False


def _pairs(gold: Any, answer: Any) -> Iterator[tuple[Any, Any]]:  # noqa: C901, one case per kind
    if isinstance(gold, Equality) and isinstance(answer, Equality) and gold.lhs == answer.lhs:
        yield from _pairs(gold.rhs, answer.rhs)
    elif isinstance(gold, Equality) and not isinstance(answer, Relational):
        yield from _pairs(gold.rhs, answer)
    elif isinstance(answer, Equality) and not isinstance(gold, Relational):
        yield from _pairs(gold, answer.rhs)
    elif isinstance(gold, Interval) and isinstance(answer, Interval):
        yield from ((gold.start, answer.start), (gold.end, answer.end))
    elif isinstance(gold, MatrixBase) and isinstance(answer, MatrixBase):
        if gold.shape == answer.shape:
            yield from zip(gold.flat(), answer.flat(), strict=True)
    elif isinstance(gold, Tuple) and isinstance(answer, Tuple):
        if len(gold) == len(answer):
            for one, other in zip(gold, answer, strict=True):
                yield from _pairs(one, other)
    elif isinstance(gold, sympy.FiniteSet) and isinstance(answer, sympy.FiniteSet):
        if len(gold) == len(answer) and all(map(_is_real_number, (*gold.args, *answer.args))):
            yield from zip(*(sorted(each.args, key=_size) for each in (gold, answer)), strict=True)
    elif isinstance(gold, Expr) and isinstance(answer, Expr):
        yield _at_point(gold), _at_point(answer)


def _at_point(expression: Expr) -> Any:
    names = sorted(expression.free_symbols, key=lambda symbol: symbol.name)
    if len(names) > len(_POINT):
        return None
    return expression.subs(dict(zip(names, _POINT, strict=False))) if names else expression


def _is_number(value: Any) -> bool:
    if not isinstance(value, Expr) or value.free_symbols:
        return False
    return not value.has(sympy.oo, sympy.nan, sympy.zoo) and value.is_number is not False


def _is_real_number(value: Any) -> bool:
    return _is_number(value) and value.is_real is True


def _size(value: Expr) -> float:
    return value.evalf(_DIGITS)


def _without_percent(value: Expr) -> tuple[Expr, bool]:
    """math-verify writes 9% as 9 times an unevaluated 1/100."""
    hundredth = UnevaluatedExpr(Rational(1, 100))
    if isinstance(value, sympy.Mul) and hundredth in value.args:
        rest = [argument for argument in value.args if argument != hundredth]
        return sympy.Mul(*rest, evaluate=False) if len(rest) > 1 else rest[0], True
    return value, False


def _exact(value: Expr) -> Expr:
    """Decimals as the fractions that they are written for."""
    if not value.has(Float):
        return value
    return value.replace(lambda part: isinstance(part, Float), lambda part: Rational(str(part)))


def _close(gold: Basic, answer: Basic, decimal: bool) -> bool:
    size = max(abs(gold.evalf(_DIGITS)), abs(answer.evalf(_DIGITS)))
    if size == 0:
        return True
    written_out = bool(sympy.log(size, 10) < _HUGE)
    if written_out:
        gold, answer = gold.doit(), answer.doit()
        if gold.is_Rational and answer.is_Rational and gold == answer:
            return True
    minus_answer = sympy.Mul(-1, answer, evaluate=written_out)
    difference = sympy.Add(gold, minus_answer, evaluate=written_out)
    if difference.is_Rational and not decimal:
        return difference == 0
    error = abs(difference.evalf(_DIGITS, maxn=_MOST_DIGITS))
    if bool(error <= ZERO * size):
        return True
    if not decimal or not bool(error <= RELATIVE_ERROR * size):
        return False
    return bool(gold.evalf(40).round(DECIMAL_PLACES) == answer.evalf(40).round(DECIMAL_PLACES))
