"""Public benchmarks: which columns their files have, and how each is asked, sampled and graded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

REASON_IN_BOX = (
    "{question}\nPlease reason step by step, and put your final answer within \\boxed{}."
)
"""Qwen's prompt for mathematics, see the model card of Qwen2.5-Math."""
COMPLETE_FUNCTION = (
    "Complete this Python function. Write all of it, with what it imports, in one code block that "
    "begins with ```python.\n\n```python\n{question}\n```"
)
WRITE_PROGRAM = (
    "{question}\n\nWrite the Python program in one code block that begins with ```python."
)


@dataclass(frozen=True)
class Columns:
    """Where a layout of a suite's file has question and answer; see `QuestionFile`."""

    prompt: str
    answer: str
    answer_pattern: str | None = None


PREPARED = Columns("prompt", "answer")
"""What tools/prepare_data.py writes."""
SHARED_BY_TRAINERS = Columns("prompt", "reward_model.ground_truth")
"""The layout that many trainers with verifiable rewards read."""

_MATH_COLUMNS = (
    PREPARED,
    Columns("problem", "answer"),
    Columns("question", "answer"),
    Columns("prompt", "reward_model.ground_truth.target"),
    SHARED_BY_TRAINERS,
    Columns("question", "final_answer"),  # OlympiadBench
    Columns("problem", "solution"),  # Minerva: the answer stands in a box
)


@dataclass(frozen=True)
class Suite:
    """One benchmark. What an entry of `evaluation.suites` says itself wins over what is here."""

    title: str
    reward: str
    """Name of the reward function; of an environment's suite the environment scores."""
    columns: tuple[Columns, ...]
    """Layouts of its file, the first that fits is taken."""
    prompt_template: str | None = None
    """See `QuestionFile.prompt_template`; None: the file holds whole prompts."""
    samples_per_prompt: int = 16
    """The ResRL paper's Avg@16."""
    pass_at: tuple[int, ...] = (1, 8, 16)
    temperature: float = 0.6
    """The ResRL paper's."""
    top_p: float = 0.95
    """The ResRL paper's."""
    environment: str | None = None
    """What `rollout.environment` has to be; None: the questions take one turn."""
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Of the reward function."""

    def entry(self, name: str, path: str, columns: Columns | None) -> dict[str, Any]:
        """The entry of `evaluation.files` that says the same.

        Args:
            name: Of the suite.
            path: Of its file.
            columns: The layout of the file; None: not known.
        """
        said: dict[str, Any] = {
            "path": path,
            "name": name,
            "reward": {"function": self.reward, "options": dict(self.options)},
            "prompt_template": self.prompt_template,
            "samples_per_prompt": self.samples_per_prompt,
            "pass_at": list(self.pass_at),
            "temperature": self.temperature,
            "top_p": self.top_p,
        }
        if columns is not None:
            said |= {
                "prompt_key": columns.prompt,
                "answer_key": columns.answer,
                "answer_pattern": columns.answer_pattern,
            }
        return said


def _math(title: str, *columns: Columns) -> Suite:
    return Suite(title, "math", columns or _MATH_COLUMNS, REASON_IN_BOX)


def _code(title: str, template: str) -> Suite:
    return Suite(title, "code", (PREPARED, SHARED_BY_TRAINERS), template)


def _one_sample(
    title: str, reward: str, temperature: float, environment: str | None = None
) -> Suite:
    return Suite(
        title,
        reward,
        (PREPARED, SHARED_BY_TRAINERS),
        samples_per_prompt=1,
        pass_at=(1,),
        temperature=temperature,
        top_p=1.0,
        environment=environment,
    )


def _agent(title: str, environment: str) -> Suite:
    """Sampled as verl-agent (GiGPO, arXiv 2505.10978) validates."""
    return _one_sample(title, "math", 0.4, environment)


def _bfcl(part: str, reward: str, environment: str | None = None) -> Suite:
    """Greedy; the leaderboard's temperature is 0.001."""
    title = f"Berkeley Function-Calling Leaderboard, {part}"
    return _one_sample(title, reward, 0.0, environment)


SUITES: dict[str, Suite] = {
    "aime24": _math("AIME 2024, 30 questions"),
    "aime25": _math("AIME 2025, 30 questions"),
    "amc23": _math("AMC 12 2023, 40 questions"),
    "math500": _math("MATH-500"),
    "minerva": _math("Minerva, 272 questions of university courses"),
    "olympiad": _math("OlympiadBench, 675 questions in English with a final answer"),
    "gsm8k": _math("GSM8K, 1,319 questions", PREPARED, Columns("question", "answer", "####(.+)")),
    "humaneval_plus": _code("HumanEval+, 164 functions", COMPLETE_FUNCTION),
    "mbpp_plus": _code("MBPP+, small functions", WRITE_PROGRAM),
    "livecodebench": _code("LiveCodeBench, contests", WRITE_PROGRAM),
    "codeforces": _code("Codeforces, contests", WRITE_PROGRAM),
    "bfcl": _bfcl("one turn", "function_calling"),
    "bfcl_multi_turn": _bfcl("several turns", "math", environment="bfcl"),
    "alfworld": _agent("ALFWorld, tasks of a household in text", "alfworld"),
    "webshop": _agent("WebShop, purchases in a text shop", "webshop"),
    "countdown": Suite(
        "Countdown, a number from given numbers",
        "countdown",
        # The column `answer` of public files is a worked solution.
        (SHARED_BY_TRAINERS, PREPARED),
        samples_per_prompt=4,
        pass_at=(1, 4),
    ),
}
"""Name in `evaluation.suites` -> what it is."""
