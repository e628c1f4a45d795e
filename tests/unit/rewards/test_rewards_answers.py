r"""Which answers are equal, and which text of a response is one, by examples of every kind."""

# ruff: noqa: RUF001 - letters that look alike are told apart here
from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_resrl.rewards.final_answer import final_answer
from megatron_resrl.rewards.math import math_reward

EQUAL = {
    "punctuation": {
        "18": ("18.", "18,", "18;", r"\text{18.}", r"18\\", "18 .", "18。"),
        r"-\frac{5}{3}": (r"-\frac{5}{3}.", r"-\dfrac53.", "-5/3,"),
        "1234": ("1,234.", "1,234"),
        "30": (r"30^\circ.", r"30^{\circ}", "30°", "30 degrees", r"30\degree"),
    },
    "separators": {
        "100,000": ("x = 100,000", "100000", "x=100000"),
        "1234567": (
            *("1,234,567", "1{,}234{,}567", r"1\,234\,567", "1 234 567", r"1\!,234\!,567"),
            *("1'234'567", "1_234_567", "n = 1,234,567", "1.234567e6"),
        ),
        "1,2,345": ("345, 2, 1",),
        "(1,234)": ("(1, 234)",),
        r"\{100,200\}": (r"\{100, 200\}",),
        r"\frac{2469}{20,000}": ("0.12345", r"\frac{2469}{20000}"),
        "1000000, 2000000": (r"1,000,000 \text{ and } 2,000,000",),
    },
    "numbers": {
        "120000": ("1.2e5", "1.2E+05", r"1.2 \times 10^5", "1.2 x 10^5", "1.2·10⁵", "1.2*10**5"),
        r"\frac{7}{2}": ("3 1/2", "3½", r"3\frac12", r"3\ 1/2", "3.5", r"3\tfrac{1}{2}"),
        "-7/2": ("-3 1/2", "−3½", r"-3\frac{1}{2}"),
        "1/3": ("⅓", "1⁄3", r"0.\overline{3}", r"0.\dot{3}", "0.333333"),
        "0.5": ("50%", r"50\%", ".5", "50 percent", r"50\text{ percent}", "1/2", "0.500"),
        "120": ("5!", "+120", "0120", "(120)", r"\textbf{(120)}", r"{120}"),
        r"\sqrt{2}": ("√2", r"\sqrt2", "sqrt(2)", "√(2)", "2^{1/2}", "1.414214", "√{2}"),
        "2516_8": ("2516_{8}", "2516", r"2516_8.", "(2516)_8"),
        "{A5}_{11}": ("A5_{11}", r"\text{A5}_{11}"),
        r"\frac{1}{2}": (r"{1 \over 2}", r"1 \over 2", r"\nicefrac{1}{2}", r"\frac 12"),
        "5, -5": ("±5", r"\pm 5"),
    },
    "symbols": {
        r"\emptyset": (r"\varnothing", "∅", r"\{\}", r"\{ \}"),
        "2\\pi": ("2π", "2pi", r"2 \pi", "2*pi"),
        r"(-\infty,3]": ("(-∞, 3]", r"\left(-\infty, 3\right]", "(-infinity,3]"),
        "x^2": ("x²", "x^{2}", "x**2", "x^(2)"),
        "10^{-5}": ("10⁻⁵", "10^-5", "0.00001"),
        r"x \le 3": ("x ≤ 3", r"x \leqslant 3", "x <= 3"),
    },
    "letters": {
        "a+b+c": ("a + b + c", "c + b + a", "a+b + c"),
        "x^2+c": ("x^2 + c", "c + x²"),
        "vt": ("v t", "t v", r"v \cdot t"),
        "v t + h": ("vt + h", "h + vt"),
        "m g h": ("mgh", r"m\,g\,h"),
    },
    "units": {
        "5": ("5 m", r"5 \text{ m}", r"5\,\mathrm{cm}", "5 apples", "x = 5 cm", r"5\text{ ways}"),
        r"5 \text{ meters}": ("5", "5 m", r"5\text{ metres}"),
        r"12\text{ square feet}": ("12", r"12 \text{ ft}^2", "12 sq ft"),
        "60": ("60 mph", "60 miles per hour", r"60 \text{ km/h}"),
        r"9\pi": (r"9\pi\text{ cm}^2", r"9 \pi \text{ square inches}"),
        "18": (r"\$18", "$18", "18 dollars", "€18", r"\text{Rs. }18"),
    },
    "choices and words": {
        "C": ("(C)", "C.", r"\text{(C)}", r"\textbf{(C)}\ 12", "(C) 12", "c"),
        "12": (r"\textbf{(C)}\ 12", "(C) 12", "C. 12"),
        r"\textbf{(C)}\ 12": ("12", "C", r"\text{(C)}"),
        r"\text{Evelyn}": ("Evelyn", r"\textbf{evelyn}", r"\mathrm{Evelyn}."),
        r"\text{not possible}": ("not possible", r"\text{Not possible.}"),
    },
    "layout": {
        "18": (
            *(r"\color{blue}{18}", r"\textcolor{red}{18}", r"{\color{red} 18}", r"\underline{18}"),
            *(r"\mathbf{18}", r"\boxed{18}", r"\bf 18", r"\displaystyle 18", r"\text{18}"),
            *(r"\text{The answer is }18", "= 18", r"\approx 18", "$18$", r"\(18\)"),
        ),
        r"\left( 3, \frac{\pi}{2} \right)": (r"(3, \pi/2)", r"\Big(3, \dfrac{\pi}2\Big)"),
        r"\begin{pmatrix}1\\2\end{pmatrix}": (r"\begin{bmatrix}1\\ 2\end{bmatrix}",),
    },
    "several": {
        "5, 7": ("7,5", r"5 \text{ and } 7", "5 or 7", r"x=5 \text{ or } x=7", r"\{5,7\}"),
        "x=5": ("5", "x = 5.0"),
    },
}

DIFFERENT = {
    "letters": {
        "x + c": ("x + t", "x"),
        "a + b + c": ("a + c", "a + b"),
        r"\pi r^2 h": (r"\pi r^2", r"\pi r^2 m"),
        "A = b h": ("A = l", "A = b"),
        "v t": ("v", "v s"),
        "k m": ("k", "m"),
        "5": ("5x", "5 + c", "5 + t", "5a", "5 c + d"),
        "2t": ("2", "2 s"),
        r"2\pi": (r"2 \pi h", r"\pi"),
    },
    "tiny and huge": {
        r"\frac{1}{2004!}": (r"\frac{1}{2006!}", "0"),
        "2^{-99}": ("2^{-98}", "0", r"\frac{1}{2^{98}}"),
        r"\frac{2^{2005}+1}{3 \cdot 2^{2006}}": (r"\frac{1}{3 \cdot 2^{2006}}",),
        "0.0000001": ("0.0000002", "0", "10^{-8}"),
        "x/2^{99}": ("x/2^{98}", "0"),
        "(2^{-99}, 1)": ("(2^{-98}, 1)",),
        "2^{-99}, 1": ("1, 2^{-98}",),
        "y = 2^{-99}": ("y = 2^{-98}", "2^{-98}"),
        "2^{1000}": ("2^{1000}+1",),
        "10^{50}+1": ("10^{50}",),
        "123456789012345678901": ("123456789012345678902",),
        r"10^{50}+\sqrt{2}": (r"10^{50}+\sqrt{3}",),
    },
    "numbers": {
        "1/3": ("0.33", "0.3", "3"),
        r"\sqrt{2}": ("1.41", "2", "1.414"),
        "100,200": ("(100,200)", "100", "200"),
        "1.000": ("1000", "1,000"),
        "11_2": ("11_3", "11_{10}"),
        "A5_{11}": ("5A_{11}",),
        "10^{-400}": ("10^{-401}", "0"),
        "e^{-100}": ("e^{-101}",),
        "-1": ("1", "--1"),
        "5": ("5!", "0.5%", "0.05", "05.1"),
        "0": ("2x-y+2z-18=0", "x - 5 = 0"),
        "7": (r"\text{(073)}", "7, 8", "{7, 8}"),
    },
    "units": {
        r"5 \text{ m}": (r"5 \text{ cm}", "5 km"),
        r"5 \text{ hours}": (r"5 \text{ minutes}",),
        r"12\text{ cm}^2": (r"12\text{ cm}^3", r"12\text{ m}^2"),
    },
    "choices and words": {
        "C": ("(D)", "(D) C", r"\text{D}"),
        r"\textbf{(C)}\ 12": (r"\textbf{(B)}\ 12", "13", "B"),
        "east": ("seat", "west"),
        r"\text{even}": ("odd", "neve"),
    },
    "several": {
        "(1,2)": ("(2,1)", "(1,2,3)"),
        "[2,5)": ("[2,5]", "(2,5)"),
        "5, 7": ("5", "7", "5, 7, 9"),
        "x=5": ("y=5", "x=6"),
    },
}


def _scores(answers: dict[str, tuple[str, ...]]) -> dict[tuple[str, str], float]:
    return {
        (truth, answer): math_reward(rf"So it is $\boxed{{{answer}}}$.", truth)
        for truth, several in answers.items()
        for answer in several
    }


@pytest.mark.parametrize("kind", EQUAL)
def test_math_answers_are_equal_in_every_spelling(kind: str) -> None:
    assert [pair for pair, score in _scores(EQUAL[kind]).items() if score != 1.0] == []


@pytest.mark.parametrize("kind", DIFFERENT)
def test_math_answers_that_differ_are_not_equal(kind: str) -> None:
    assert [pair for pair, score in _scores(DIFFERENT[kind]).items() if score != 0.0] == []


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"The answer is \boxed{5}. Hmm, let me recheck. The answer is \boxed{7}.", "7"),
        ("So it is \\boxed{5}.\n\nWait, I counted one twice.\n\n**Final answer:** \\boxed{7}", "7"),
        (r"Step 1: \boxed{a=3}. Step 2: \boxed{b=4}. So a+b=\boxed{7}.", "7"),
        (r"\boxed{2x+1} is not it; it is \boxed{-2x-1}", "-2x-1"),
        (r"The solutions are \boxed{5} and \boxed{7}.", "5, 7"),
        (r"$\boxed{5}$, $\boxed{7}$, or $\boxed{9}$", "5, 7, 9"),
        ("\\boxed{5}\n\n\\boxed{7}", "7"),
        (r"\boxed{7}, that is \boxed{7}", "7"),
        (r"\boxed {18}", "18"),
        (r"\fbox{18}", "18"),
        (r"\boxed 7", "7"),
        (r"\boxed{\frac{1}{\sqrt{2}}} cm", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\boxed{7}}", r"\boxed{7}"),
        (r"I put it in \boxed{}: \boxed{7}. (\boxed{})", "7"),
        (r"\boxed{5}. Then \boxed{7", ""),
        (r"\boxed{5}. Wait, that is wrong. The final answer is 7.", "7"),
        (r"\boxed{5}. Oops, it should be 7.", "7"),
        (r"\boxed{5}. I made a mistake.", ""),
        (r"\boxed{7}. Let me check: 3 + 4 = 7, after 12 minutes.", "7"),
        ("She answered 200 calls, 200/5 = <<200/5=40>>40 a day\n#### 40", "40"),
        ("#### 5\nI made a mistake.\n#### 7", "7"),
        ("#### Step 1: add\n3 + 4\n#### Final answer\n7", "7"),
        ("She answered 12 of 52, which leaves 40. The final result is 40.", "40"),
        ("The answer is 5. No, that is wrong, it is 7.", "7"),
        ("The answer is 5. Actually, the answer is 7.", "7"),
        ("The answer is not 5 but 7.", "7"),
        (r"The final answer is $\frac{1}{2}$. I hope it is correct.", r"\frac{1}{2}"),
        ("The answer is $5$ and $7$.", "5, 7"),
        ("**Final Answer:**\n\n$$x = 5$$", "x = 5"),
        ("**Answer:** 34 apples", "34 apples"),
        ("Each answer is worth 5 points, so 3*5 = 15", "15"),
        ("The number of correct answers is 12. So her score is 2*12 = 24.", "24"),
        ("The answer is going to be 18 apples.", "18 apples"),
        ("The answer is 12 because 3*4 = 12.", "12"),
        ("The answer is 1,234.50.", "1,234.50"),
        ("Therefore $x = -3$", "x = -3"),
        ("So 5 is the value of $x$", "5"),
        ("It costs $5 and $7, so $12", "$12"),
        ("I think 42, or maybe 43", "43"),
        ("none at all", ""),
        ("", ""),
    ],
)
def test_final_answer_is_never_one_that_was_taken_back(response: str, answer: str) -> None:
    assert final_answer(response) == answer


@pytest.mark.parametrize(
    "piece", ["####\n", "\\[", "\\(", "$$", "$x$ ", r"\boxed{", "{", "1 ", "1,"]
)
def test_final_answer_reads_long_garbage_in_linear_time(piece: str) -> None:
    """A quadratic reader would take the whole test run, and every grader's time-out."""
    final_answer(piece * (100_000 // len(piece)))


INTEGERS = st.integers(min_value=-(10**18), max_value=10**18)


def _integer_spellings(number: int) -> list[str]:
    grouped = f"{number:,}"
    return [
        *(f"{number}", grouped, grouped.replace(",", "{,}"), grouped.replace(",", r"\,")),
        *(f"{number}.", f"{number}.0", f"x = {grouped}", rf"{number} \text{{ apples}}"),
        *(
            f"{number} cm",
            rf"\textbf{{(B)}}\ {number}",
            f"−{-number}" if number < 0 else f"+{number}",
        ),
    ]


@settings(max_examples=12)
@given(number=INTEGERS)
def test_math_integers_equal_their_spellings_not_neighbours(number: int) -> None:
    for spelling in _integer_spellings(number):
        response = rf"\boxed{{{spelling}}}"
        assert math_reward(response, number) == 1.0, spelling
        assert math_reward(response, str(number + 1)) == 0.0, spelling


@settings(max_examples=25)
@given(upper=st.integers(-5000, 5000), lower=st.integers(2, 5000))
def test_math_fractions_equal_their_spellings_not_neighbours(upper: int, lower: int) -> None:
    value = Fraction(upper, lower)
    spellings = [
        rf"\frac{{{upper}}}{{{lower}}}",
        f"{upper}/{lower}",
        rf"\dfrac{{{upper}}}{{{lower}}}.",
    ]
    if abs(upper) > lower and upper % lower:
        sign = "-" if upper < 0 else ""
        spellings.append(f"{sign}{abs(upper) // lower} {abs(upper) % lower}/{lower}")
    for spelling in spellings:
        response = rf"\boxed{{{spelling}}}"
        assert math_reward(response, value) == 1.0, spelling
        assert math_reward(response, Fraction(upper + 1, lower)) == 0.0, spelling


@settings(max_examples=25)
@given(digits=st.integers(1, 10**6 - 1), exponent=st.integers(-30, 30))
def test_math_floats_equal_their_spellings_not_one_percent_off(digits: int, exponent: int) -> None:
    number = float(f"{digits}e{exponent}")
    for spelling in (
        f"{number!r}",
        rf"{digits} \times 10^{{{exponent}}}",
        f"{digits}e{exponent:+03d}",
    ):
        response = rf"\boxed{{{spelling}}}"
        assert math_reward(response, number) == 1.0, spelling
        assert math_reward(response, number * 1.01) == 0.0, spelling
