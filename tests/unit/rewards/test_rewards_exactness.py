"""Whether two numbers are the same, beside what the answers of whole responses show."""

from __future__ import annotations

import sympy
from sympy import Integer, Pow, Rational, UnevaluatedExpr

from megatron_resrl.rewards.exactness import _without_percent, same_number

HUNDREDTH = UnevaluatedExpr(Rational(1, 100))


def percent(*factors: sympy.Expr) -> sympy.Expr:
    """As math-verify writes a percentage of a product."""
    return sympy.Mul(*factors, HUNDREDTH, evaluate=False)


def test_same_number_does_not_write_out_percentages() -> None:
    # 10^(10^6) has a million digits: multiplied out, each of these takes a second, and a number of
    # ten digits in place of six gigabytes.
    huge = Pow(Integer(10), Integer(10) ** 6, evaluate=False)
    assert same_number(percent(Integer(3), huge), percent(Integer(3), huge))
    assert same_number(percent(Integer(3), huge), percent(Integer(4), huge)) is False
    kept, is_percent = _without_percent(percent(Integer(3), huge))
    assert is_percent
    assert set(kept.args) == {Integer(3), huge}


def test_same_number_takes_percentages_as_hundredths_too() -> None:
    assert same_number(percent(Integer(9), Integer(2)), Integer(18))
    assert same_number(percent(Integer(9), Integer(2)), Rational(18, 100))
    assert same_number(percent(Integer(9)), percent(Rational(9, 100))) is False


def test_same_number_knows_zero_however_it_is_written() -> None:
    zeros = (Integer(0), sympy.Float("0.0"), percent(Integer(0)), sympy.sin(sympy.pi))
    assert all(same_number(gold, answer) for gold in zeros for answer in zeros)
    assert not any(same_number(zero, Rational(1, 10**30)) for zero in zeros)
