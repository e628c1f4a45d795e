"""Settings of questions: which are asked, how answers are graded, and what is held out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from megatron_resrl.config.ranges import POSITIVE_SHARE, above, at_least

FileEntry = str | dict[str, Any]
"""Path of a file, folder or pattern; or a mapping with `path` and what holds for it alone."""


@dataclass(frozen=True)
class DataConfig:
    """The training prompts."""

    train_files: tuple[FileEntry, ...] = ()
    """.jsonl, .json or .parquet files (also .jsonl.gz and .jsonl.zst), folders of them, or patterns
    such as data/*.parquet; one path or a list. An entry {path: FILE, prompt_key: COLUMN} has keys
    of its own: prompt_key, answer_key, answer_pattern, system_prompt, prompt_template, data_source,
    name."""
    generator: str | None = None
    """`reasoning_gym:TASK` makes the questions, in place of files; `reasoning_gym:composite` draws
    from several tasks. The reward `reasoning_gym` verifies answers."""
    generator_options: dict[str, Any] = field(default_factory=dict)
    """Fields of the task's configuration, e.g. {min_terms: 2, max_terms: 3}."""
    generator_size: Annotated[int, at_least(1)] = 1000
    """Questions that are made."""
    generator_seed: Annotated[int | None, at_least(0)] = None
    """Question i depends on this + i; null: `seed`."""
    prompt_key: str | None = None
    """Column with the question (a string or chat messages), dotted for nested ones; default:
    prompt, then question, then problem."""
    answer_key: str | None = None
    """Column of the ground truth, dotted for nested ones; default: reward_model.ground_truth,
    then answer, then ground_truth."""
    answer_pattern: str | None = None
    """Regular expression with one group that cuts the answer out of that column."""
    system_prompt: str | None = None
    """System message put before every prompt that has none."""
    tools_key: str | None = "tools"
    """Column with the tools (JSON schemas) that the chat template shows, where a row has it; null:
    show none."""
    apply_chat_template: bool = True
    """Format prompts with the tokenizer's chat template; False: string prompts as they are."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Passed to the chat template, e.g. {"enable_thinking": false}."""
    continue_final_message: bool = False
    """Let responses continue the assistant's message that a prompt ends with. False: such prompts
    are refused, because they usually hold an answer that was left in."""
    max_prompt_length: Annotated[int, at_least(1)] = 2048
    """Longer prompts (tokens) are reported and dropped (paper: 2048)."""
    shuffle: bool = True
    """Visit prompts in a random order keyed by (seed, epoch)."""


@dataclass(frozen=True)
class CodeConfig:
    """How programs of responses are run, for the reward `code` and the tool `python`."""

    backend: Literal["auto", "bubblewrap", "landlock", "remote", "rlimits"] = "auto"
    """`bubblewrap`: namespaces of their own (the program bwrap); `landlock`: what the kernel can do
    without those, and programs without threads and files; `auto`: the first of both that works
    here; `remote`: a SandboxFusion server; `rlimits`: limits only, and programs reach all that this
    user does."""
    allow_unsandboxed: bool = False
    """Accept `rlimits`."""
    url: str | None = None
    """Of the SandboxFusion server, e.g. http://sandbox:8080."""
    timeout_s: Annotated[float, above(0)] = 4.0
    """Seconds that a program may take for one test; for all tests together where they are asserts.
    Less than `reward.timeout_s`, which holds for the whole response."""
    memory_mb: Annotated[int, at_least(64)] = 512
    """MiB of addresses that a program may have."""
    packages: str | None = None
    """Folder of modules that programs and tests may import beside the standard library, as made by
    `pip install --target FOLDER numpy`."""


@dataclass(frozen=True)
class RewardConfig:
    """How responses are graded."""

    function: str = "math"
    """`math` (math-verify), `integer` (exact integer answer), `multiple_choice`, `code` (programs
    with tests), `function_calling`, `countdown`, `reasoning_gym` (verifiers of `data.generator`),
    `format`, `length`, `remote`, `judge`, or `path.py:name`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further keyword arguments of the function."""
    functions: tuple[dict[str, Any], ...] = ()
    """Several functions in place of `function`: {name: NAME, weight: 1.0, options: {...},
    data_sources: [...]}. The reward is the weighted sum of those that judge the row; the first of
    these decides what is correct. Names or patterns of data sources choose the rows of a function;
    none: all rows."""
    workers: Annotated[int, at_least(1)] = 2
    """Grader processes per rank."""
    timeout_s: Annotated[float, above(0)] = 10.0
    """Seconds per response; a slower one scores 0 and is counted."""
    memory_gb: Annotated[float | None, at_least(0.1)] = 4.0
    """GiB that grading may take beyond what a grader process holds at its start (Linux); a response
    that needs more scores 0 and is counted. None: no limit."""
    length_scaling: bool = False
    """Scale down the reward of correct responses that are long (paper: true)."""
    length_full_until: Annotated[int, at_least(0)] = 3500
    """Response tokens up to which a correct response keeps its full reward (paper: 3500)."""
    length_floor_at: int = 4096
    """Response tokens from which on it keeps only `length_floor` (paper: 4096)."""
    length_floor: Annotated[float, POSITIVE_SHARE] = 0.7
    """The smallest factor, above 0 (paper: 0.7)."""
    overlong: Literal["truncate", "mask", "penalize"] = "truncate"
    """Responses cut off at `rollout.max_response_length`. `truncate`: graded as they are; `mask`:
    no part of the loss; `penalize`: lose up to `overlong_penalty` over the last `overlong_buffer`
    tokens (DAPO's soft punishment)."""
    overlong_buffer: Annotated[int, at_least(1)] = 1024
    """Tokens before the limit over which the penalty grows from 0."""
    overlong_penalty: Annotated[float, at_least(0)] = 1.0
    """Taken off the reward at the limit."""
    code: CodeConfig = field(default_factory=CodeConfig)


@dataclass(frozen=True)
class EvaluationConfig:
    """Held-out questions."""

    files: tuple[FileEntry, ...] = ()
    """Files as in data.train_files; each file is a set with metrics of its own. An entry may also
    have a `reward` of its own (a function's name, {function: NAME, options: {...}}, or a list as
    in reward.functions), samples_per_prompt, temperature, top_p, pass_at, max_prompts, and a
    max_response_length that is not above that of `rollout`. An entry {generator:
    reasoning_gym:TASK, options: {...}, size: 200, seed: 7} is made as by data.generator."""
    every: Annotated[int, at_least(0)] = 0
    """Steps between evaluations; 0: only before the first and after the last step."""
    samples_per_prompt: Annotated[int, at_least(1)] = 4
    """Responses per question (paper: 16)."""
    temperature: Annotated[float, at_least(0)] = 0.6
    """Sampling temperature (paper: 0.6)."""
    top_p: Annotated[float, POSITIVE_SHARE] = 0.95
    """Nucleus mass (paper: 0.95)."""
    pass_at: tuple[int, ...] = (1,)
    """The k of the unbiased pass@k; each at most `samples_per_prompt`."""
    max_prompts: Annotated[int | None, at_least(1)] = None
    """Use only the first questions of each file."""
    keep_responses: bool = True
    """Write every response with its score below `<output_dir>/evaluation`."""
    response_format: Literal["jsonl", "parquet"] = "jsonl"
    """Kind of these files."""
    suites: tuple[FileEntry, ...] = ()
    """Public benchmarks, each a set: aime24, aime25, amc23, math500, minerva, olympiad, gsm8k,
    humaneval_plus, mbpp_plus, livecodebench, codeforces, bfcl, bfcl_multi_turn, alfworld, webshop,
    countdown. An entry {suite: NAME, path: FILE} may have every key of an entry of `files`, which
    wins over the suite's; the suite wins over the settings of this section."""
    suites_dir: str = "suites"
    """Folder with <suite>.parquet or <suite>.jsonl, as tools/prepare_data.py writes them."""

    @property
    def entries(self) -> tuple[FileEntry, ...]:
        """All that is evaluated, of `files` and of `suites`."""
        return (*self.files, *self.suites)
