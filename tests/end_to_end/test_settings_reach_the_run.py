"""Settings with values of their own in one whole run: each shows in what the run leaves."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from faults import Fault, run_task
from tiny_task import read_metrics, write_task

STOPS = list(range(3, 12))
LIMIT = 6
PROMPT_LIMIT = 4
TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}{{ ending }}"


@dataclass(frozen=True)
class Run:
    """A run that has ended."""

    folder: Path
    metrics: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    log: str

    def prompts(self, step: int) -> list[list[int]]:
        """Token ids of every prompt of a step, group by group."""
        path = self.folder.parent / "record" / f"step_{step:06d}.parquet"
        rows = pq.read_table(path).to_pydict()
        own = dict(zip(rows["group"], rows["prompt_ids"], strict=True))
        return [own[group] for group in sorted(own)]

    @property
    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "checkpoints").glob("step_*"))


def _run(directory: Path, **overrides: object) -> Run:
    done = run_task(write_task(directory, **overrides), None, ranks=1)
    assert done.code == 0, done.text
    folder = Path(str(overrides.get("output_dir", directory / "run")))
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").split("\n")
    samples = [json.loads(line) for line in lines if line]
    return Run(folder, read_metrics(folder), samples, done.text)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Four steps of GRPO in which hardly a setting has its default."""
    directory = tmp_path_factory.mktemp("settings")
    rows = [{"query": f"{n} {n + 1}", "solution": f"so #### {n}"} for n in range(3, 19)]
    rows.insert(1, {"query": "3 4 5 6 7 8", "solution": "#### 8"})  # Longer than the limit.
    text = "".join(json.dumps(row) + "\n" for row in rows)
    for name in ("own.jsonl", "held.jsonl"):
        (directory / name).write_text(text)
    write_task(directory)
    shutil.copytree(directory / "model", directory / "tokenizer")
    (directory / "tokenizer" / "chat_template.jinja").write_text(TEMPLATE)
    return _run(
        directory,
        output_dir=str(directory / "elsewhere"),
        steps=4,
        model={"path": str(directory / "model"), "tokenizer_path": str(directory / "tokenizer")},
        algorithm__name="grpo",
        data={
            "train_files": [str(directory / "own.jsonl")],
            "prompt_key": "query",
            "answer_key": "solution",
            "answer_pattern": "#### (.+)",
            "system_prompt": "60",
            "chat_template_kwargs": {"ending": "61"},
            "max_prompt_length": PROMPT_LIMIT,
            "shuffle": False,
        },
        rollout={
            "prompts_per_step": 3,
            "group_size": 5,
            "max_response_length": LIMIT,
            "stop_token_ids": STOPS,
            "record": str(directory / "record"),
        },
        evaluation={
            "files": [str(directory / "held.jsonl")],
            "every": 1,
            "samples_per_prompt": 3,
            "pass_at": [2],
            "max_prompts": 2,
            "temperature": 0,
        },
        optimizer={
            "lr": 0.01,
            "min_lr": 0.008,
            "lr_warmup_steps": 2,
            "lr_decay_style": "linear",
            "lr_decay_steps": 6,
        },
        checkpoint={
            "save_every": 1,
            "keep_last": 1,
            "keep_every": 2,
            "best_metric": "learning_rate",
            "best_mode": "min",
            "export_hf": False,
            "keep_rollouts": False,
        },
        logging={"tensorboard": True, "progress_bar": True, "sample_responses": 15},
    )


@pytest.mark.setting("reward.function")
def test_reward_function_of_the_recipe_grades_responses(run: Run) -> None:
    firsts = [sample["response"].split()[:1] for sample in run.samples]
    even = [bool(first) and first[0].isdigit() and int(first[0]) % 2 == 0 for first in firsts]
    assert [sample["score"] for sample in run.samples] == even
    assert 0 < sum(even) < len(even)


@pytest.mark.setting("output_dir", "steps", "model.path", "data.train_files")
def test_output_dir_has_the_steps_of_the_run(run: Run) -> None:
    assert [line["step"] for line in run.metrics] == [0, 1, 2, 3, 4]
    assert all(sample["score"] in (0.0, 1.0) for sample in run.samples)


@pytest.mark.setting("rollout.prompts_per_step", "rollout.group_size", "rollout.record")
def test_prompts_per_step_and_group_size_make_the_step(run: Run) -> None:
    assert len(run.prompts(1)) == 3
    assert len([sample for sample in run.samples if sample["step"] == 1]) == 3 * 5


@pytest.mark.setting("data.shuffle", "data.prompt_key", "data.max_prompt_length")
def test_train_without_shuffle_keeps_the_order_of_the_file(run: Run) -> None:
    firsts = [sample["prompt"] for sample in run.samples if sample["step"] == 1][::5]
    assert firsts == ["3 4", "4 5", "5 6"]


def test_data_epoch_counts_epochs(run: Run) -> None:
    assert [line["data/epoch"] for line in run.metrics[1:]] == [3 / 16, 6 / 16, 9 / 16, 12 / 16]
    assert "16 training prompts: one epoch is 5.3 steps; 1 dropped" in run.log


@pytest.mark.setting("data.answer_key", "data.answer_pattern")
def test_answer_pattern_cuts_answers_in_a_run(run: Run) -> None:
    assert [sample["ground_truth"] for sample in run.samples][:15:5] == ["3", "4", "5"]


@pytest.mark.setting("data.system_prompt", "data.chat_template_kwargs", "model.tokenizer_path")
def test_prompts_have_system_prompt_and_template_arguments(run: Run) -> None:
    assert run.prompts(1)[0] == [60, 3, 4, 61]


@pytest.mark.setting("rollout.max_response_length")
def test_max_response_length_cuts_responses_off(run: Run) -> None:
    assert max(line["response/length_max"] for line in run.metrics[1:]) == LIMIT


@pytest.mark.setting("rollout.stop_token_ids")
def test_stop_token_ids_end_responses(run: Run) -> None:
    ended = [sample for sample in run.samples if sample["finish_reason"] == "stop"]
    assert ended
    assert all(int(sample["response"].split()[-1]) in STOPS for sample in ended)


@pytest.mark.setting("evaluation.files", "evaluation.every", "evaluation.samples_per_prompt")
@pytest.mark.setting("evaluation.pass_at")
def test_evaluation_every_evaluates_every_step(run: Run) -> None:
    for line in run.metrics:
        assert {"eval/held/avg@3", "eval/held/pass@2"} <= set(line)


@pytest.mark.setting("evaluation.max_prompts", "evaluation.temperature")
def test_evaluation_settings_answer_two_questions_greedily(run: Run) -> None:
    assert {line["eval/held/avg@3"] * 2 % 1 for line in run.metrics} == {0.0}
    assert all(line["eval/held/avg@3"] == line["eval/held/pass@2"] for line in run.metrics)


@pytest.mark.setting("checkpoint.save_every", "checkpoint.keep_last", "checkpoint.keep_every")
@pytest.mark.setting("checkpoint.best_metric", "checkpoint.best_mode")
def test_checkpoint_settings_keep_new_even_and_best_ones(run: Run) -> None:
    assert run.checkpoints == ["step_000001", "step_000002", "step_000004"]


@pytest.mark.setting("optimizer.lr", "optimizer.min_lr", "optimizer.lr_warmup_steps")
@pytest.mark.setting("optimizer.lr_decay_style", "optimizer.lr_decay_steps")
def test_train_learning_rate_follows_its_schedule(run: Run) -> None:
    rates = [line["learning_rate"] for line in run.metrics[1:]]
    assert rates == pytest.approx([0.005, 0.01, 0.0095, 0.009])


@pytest.mark.setting("checkpoint.export_hf")
def test_train_without_export_hf_exports_no_model(run: Run) -> None:
    assert not (run.folder / "hf").exists()


@pytest.mark.setting("checkpoint.keep_rollouts")
def test_keep_rollouts_off_keeps_none(run: Run) -> None:
    assert not (run.folder / "rollouts").exists()


@pytest.mark.setting("logging.sample_responses")
def test_sample_responses_logs_as_many_as_asked(run: Run) -> None:
    assert len(run.samples) == 4 * 15


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """One step with some settings, and with others."""
    runs = {}
    for name, overrides in {
        "plain": {},
        "seed": {"seed": 4},
        "top_k": {"rollout__top_k": 1, "correction": {"method": "token_tis", "warn_kl": None}},
        "quiet": {
            "logging": {"tensorboard": False, "progress_bar": False, "sample_responses": 24},
            "rollout__temperature": 0.05,
            "algorithm__name": "resrl",
            "resrl": {"rank": 4, "mask_think": True, "think_markers": ["3", "4"]},
        },
    }.items():
        directory = tmp_path_factory.mktemp(name)
        base = {
            "steps": 1,
            "algorithm__name": "grpo",
            "rollout": {"prompts_per_step": 4, "group_size": 6, "max_response_length": 8},
            "evaluation": {"files": []},
            "checkpoint": {"export_hf": False, "save_every": 0},
            "logging": {"tensorboard": True, "progress_bar": True, "sample_responses": 24},
        }
        runs[name] = _run(directory, **base | overrides)
    return runs


def _texts(run: Run) -> list[str]:
    return [sample["response"] for sample in run.samples]


@pytest.mark.setting("seed")
def test_train_seed_changes_the_responses(other: dict[str, Run]) -> None:
    assert _texts(other["plain"]) != _texts(other["seed"])


@pytest.mark.setting("rollout.top_k")
def test_top_k_1_makes_the_responses_of_a_group_equal(other: dict[str, Run]) -> None:
    texts = _texts(other["top_k"])
    assert all(len(set(texts[start : start + 6])) == 1 for start in range(0, 24, 6))
    assert len(set(_texts(other["plain"]))) > 12


@pytest.mark.setting("resrl.think_markers")
def test_think_markers_are_those_of_the_tokenizer(other: dict[str, Run]) -> None:
    assert other["quiet"].metrics[-1]["resrl/groups"] == 4


@pytest.mark.setting("rollout.temperature")
def test_temperature_that_is_low_lowers_the_entropy(other: dict[str, Run]) -> None:
    assert other["plain"].metrics[-1]["entropy"] > 4.1
    assert other["quiet"].metrics[-1]["entropy"] < 4.0


@pytest.mark.setting("logging.tensorboard")
def test_tensorboard_writes_events_if_asked(other: dict[str, Run]) -> None:
    assert list((other["plain"].folder / "tensorboard").iterdir())
    assert not (other["quiet"].folder / "tensorboard").exists()


@pytest.mark.setting("checkpoint.verify_checksums")
def test_verify_off_trusts_a_checkpoint(other: dict[str, Run], tmp_path: Path) -> None:
    plain = other["plain"].folder
    copy = shutil.copytree(plain, tmp_path / "copy")
    (sums,) = copy.rglob("SHA256SUMS")
    first, rest = sums.read_text()[0], sums.read_text()[1:]
    sums.write_text(("1" if first == "0" else "0") + rest)
    given = (f"--output_dir={copy}", "--steps=2", "--checkpoint.verify_checksums=false")
    done = run_task(plain.parent / "recipe.yaml", None, *given, ranks=1)
    assert done.code == 0, done.text
    assert "resumed after step 1" in done.text


@pytest.mark.setting("checkpoint.async_save")
def test_async_save_off_writes_in_the_training_thread(tmp_path: Path) -> None:
    # Of two steps, because every run waits for its last checkpoint.
    saves = {"save_every": 1, "async_save": False}
    recipe = write_task(tmp_path, steps=2, checkpoint=saves, evaluation__files=[])
    ended = run_task(recipe, Fault("kill", "phase:checkpoint write", step=1, rank=0), ranks=1)
    assert ended.code == -9, ended.text


GRADERS = """\
import contextlib
import os
import time
from pathlib import Path

HERE = Path(__file__).parent


def together(response, ground_truth, **context):
    \"\"\"1 if three graders run at once; the first takes longer than the default time-out.\"\"\"
    print("a grader speaks")
    with contextlib.suppress(MemoryError):
        print(len(bytearray(2**29)), "bytes taken")  # The default would let it.
    (HERE / f"{os.getpid()}.grader").touch()
    until = time.monotonic() + 60
    while len(list(HERE.glob("*.grader"))) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    try:
        (HERE / "slept").touch(exist_ok=False)
        time.sleep(11)
    except FileExistsError:
        pass
    return float(len(list(HERE.glob("*.grader"))) == 3)
"""


@pytest.mark.setting("reward.workers", "reward.timeout_s", "reward.memory_gb")
def test_reward_workers_grade_at_once_within_their_limits(tmp_path: Path) -> None:
    (tmp_path / "graders.py").write_text(GRADERS)
    reward = {"function": f"{tmp_path / 'graders.py'}:together", "workers": 3, "timeout_s": 90}
    reward["memory_gb"] = 0.25
    run = _run(tmp_path, steps=1, reward=reward, evaluation={"files": []}, algorithm__name="grpo")
    assert run.metrics[-1]["reward/timeouts"] == 0
    assert run.metrics[-1]["reward/mean"] == 1
    log = (run.folder / "rewards.log").read_text()
    assert "a grader speaks" in log
    assert "bytes taken" not in log
    assert "a grader speaks" not in run.log
