"""The grader pool with real processes: what hangs, raises or crashes, and what it costs."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_resrl.errors import InputError
from megatron_resrl.rewards import grader_process
from megatron_resrl.rewards.grader import EARLY, Grade, Grader, GradingTask, RewardError
from megatron_resrl.rewards.grader_process import LARGEST_LOG, grade_some
from megatron_resrl.rewards.registry import load_reward

FUNCTIONS = Path(__file__).with_name("reward_functions.py")
TIMEOUT_S = 1.0


def task(response: str, ground_truth: Any = "truth", sample: str = "prompt 7") -> GradingTask:
    return GradingTask(response, ground_truth, "the prompt", "the source", {"k": None}, sample)


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(f"{FUNCTIONS}:behave", workers=2, timeout_s=TIMEOUT_S) as grader:
        yield grader


def test_grader_keeps_the_order_of_tasks(grader: Grader) -> None:
    grades = grader.grade([task(f"echo {number}") for number in range(50)])
    assert grades == [Grade(float(number), timed_out=False) for number in range(50)]


def test_grader_gives_no_grades_for_no_tasks(grader: Grader) -> None:
    assert grader.grade([]) == []


@pytest.mark.parametrize("hang", ["loop", "stubborn", "sleep", "regex", "c"])
def test_grader_lets_a_hanging_function_cost_one_score(grader: Grader, hang: str) -> None:
    tasks = [task(f"echo {number}") for number in range(20)]
    tasks[5] = task(hang)
    grades = grader.grade(tasks)
    assert grades.pop(5) == Grade(0.0, timed_out=True)
    assert [grade.score for grade in grades] == [n for n in range(20) if n != 5]
    assert not any(grade.timed_out for grade in grades)


def test_grader_gives_every_response_the_whole_timeout(grader: Grader) -> None:
    # Together 4 s on 2 processes: a time-out per call or per batch would cut some of them off.
    grades = grader.grade([task(f"nap {0.4 * TIMEOUT_S}")] * 10)
    assert grades == [Grade(1.0, timed_out=False)] * 10


def test_grader_reuses_its_processes(grader: Grader) -> None:
    first = {grade.score for grade in grader.grade([task("pid")] * 20)}
    second = {grade.score for grade in grader.grade([task("pid")] * 20)}
    assert len(first | second) <= 2


def test_grader_grades_a_thousand_long_responses(grader: Grader) -> None:
    grades = grader.grade([task(f"echo 1 {' ' * 2000}") for _ in range(1000)])
    assert sum(grade.score for grade in grades) == 1000


def test_grader_ends_at_an_exception_and_names_the_sample(grader: Grader) -> None:
    with pytest.raises(RewardError) as caught:
        grader.grade([task("echo 1"), task("raise no such key", {"target": 3}), task("sleep")])
    lines = str(caught.value).splitlines()
    assert lines[:5] == [
        f"reward.function = '{FUNCTIONS}:behave' raised KeyError: 'no such key'",
        "  sample: prompt 7 of the source",
        "  prompt: 'the prompt'",
        "  response: 'raise no such key'",
        "  ground truth: {'target': 3}",
    ]
    assert lines[5] == "Traceback (most recent call last):"
    assert re.search(r"reward_functions.py\", line \d+, in _fail", str(caught.value))
    assert "grader.py" not in str(caught.value)


def test_grader_drops_what_an_error_left_before_the_next_call() -> None:
    # Whoever waited for the ones that hang would wait for hours.
    with Grader(f"{FUNCTIONS}:behave", workers=1, timeout_s=3600) as grader:
        with pytest.raises(RewardError):
            grader.grade([task("raise x"), task("sleep"), task("sleep")])
        assert grader.grade([task("echo 1")]) == [Grade(1.0, timed_out=False)]


def test_grader_takes_an_exit_for_an_error(grader: Grader) -> None:
    with pytest.raises(RewardError, match="raised SystemExit"):
        grader.grade([task("system_exit")])


def test_grader_names_the_sample_that_crashed_its_process(grader: Grader) -> None:
    with pytest.raises(RewardError, match=r"crashed its process \(exit status 41\)") as caught:
        grader.grade([task("echo 1"), task("crash", sample="prompt 99")])
    assert "prompt 99 of the source" in str(caught.value)
    assert grader.grade([task("echo 1")]) == [Grade(1.0, timed_out=False)]


def test_grader_retries_when_a_launcher_ended_its_process(grader: Grader, tmp_path: Path) -> None:
    tasks = [task("echo 2"), task("terminated_once", str(tmp_path / "mark")), task("echo 3")]
    assert [grade.score for grade in grader.grade(tasks)] == [2.0, 1.0, 3.0]


def test_grader_processes_get_no_signals_of_the_trainer_group(grader: Grader) -> None:
    assert grader.grade([task("own_session")])[0].score == 1.0


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("nan", "returned nan (float), not a finite number"),
        ("inf", "returned inf (float), not a finite number"),
        ("none", "returned None (NoneType), not a finite number"),
        ("text", "returned '1.0' (str), not a finite number"),
        ("complex", "returned 1j (complex), not a finite number"),
        ("list", "returned [1.0] (list), not a finite number"),
        ("dict without score", "returned {'acc': 1.0} (dict), not a finite number"),
        ("dict with text", "returned {'score': '1.0'} (dict), not a finite number"),
        ("empty tuple", "returned () (tuple), not a finite number"),
        ("huge", "(int), not a finite number"),
    ],
)
def test_grader_refuses_scores_that_are_not_finite(grader: Grader, value: str, said: str) -> None:
    with pytest.raises(RewardError, match=re.escape(said)):
        grader.grade([task(f"value {value}")])


def test_grader_accepts_what_converts_to_a_finite_number(grader: Grader) -> None:
    names = ("true", "int", "decimal", "dict", "tuple")
    grades = grader.grade([task(f"value {name}") for name in names])
    assert [grade.score for grade in grades] == [1.0, 2.0, 0.5, 0.25, 0.75]
    assert {type(grade.score) for grade in grades} == {float}


def test_grader_shortens_long_samples_in_errors(grader: Grader) -> None:
    with pytest.raises(RewardError) as caught:
        grader.grade([task(f"raise {'x' * 100_000}end")])
    text = str(caught.value)
    assert "  response: 'raise xxx" in text
    assert "xxxend'" in text
    assert len(text) < 10_000


def test_grader_error_can_be_sent_to_other_ranks(grader: Grader) -> None:
    with pytest.raises(RewardError) as caught:
        grader.grade([task("raise it")])
    assert isinstance(caught.value, InputError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_grader_passes_every_argument() -> None:
    with Grader(f"{FUNCTIONS}:compare_everything", workers=1, timeout_s=30) as grader:
        (grade,) = grader.grade([task("the response", {"target": [1, "2"]})])
    assert grade.score == 1.0


def test_grader_processes_import_nothing_slow() -> None:
    with Grader(f"{FUNCTIONS}:count_heavy_imports", workers=1, timeout_s=30) as grader:
        (grade,) = grader.grade([task("")])
    assert grade.score == 0


def test_grader_processes_import_a_light_main_program() -> None:
    code = "import sys, megatron_resrl.__main__; print({'torch', 'transformers'} & {*sys.modules})"
    root = Path(__file__).parents[3]
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "set()"


def test_grader_times_out_what_math_verify_cannot_finish() -> None:
    # Long enough for the first answer that a new process grades on a busy machine.
    with Grader("math", workers=1, timeout_s=10) as grader:
        grades = grader.grade(
            [task(r"\boxed{(x+1)^{1000000}}", "x+3"), task(r"\boxed{3+x}", "x+3")]
        )
    assert grades == [Grade(0.0, timed_out=True), Grade(1.0, timed_out=False)]


def test_grader_finds_a_relative_file_from_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("def score(response, ground_truth, **context): return 0.5")
    monkeypatch.chdir(tmp_path)
    grader = Grader("mine.py:score", workers=1, timeout_s=30)
    monkeypatch.chdir("/")
    with grader:
        assert grader.grade([task("")]) == [Grade(0.5, timed_out=False)]


def test_grader_ends_where_a_function_fails_only_in_workers(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import multiprocessing\n"
        "assert multiprocessing.parent_process() is None\n"
        "def score(response, ground_truth, **context): return 1.0\n"
    )
    with (
        Grader(f"{file}:score", workers=1, timeout_s=30) as grader,
        pytest.raises(RewardError, match=r"mine\.py:score': its processes ended"),
    ):
        grader.grade([task("")])


def test_grader_refuses_an_unknown_function_before_it_starts() -> None:
    with pytest.raises(InputError, match=r"reward\.function = 'maths'"):
        Grader("maths", workers=1, timeout_s=1.0)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's parent-death signal")
def test_grader_processes_die_with_a_killed_trainer(tmp_path: Path) -> None:
    script = tmp_path / "trainer.py"
    script.write_text(
        "from megatron_resrl.rewards.grader import Grader, GradingTask\n"
        "def task(response): return GradingTask(response, '', '', '', {}, '')\n"
        "if __name__ == '__main__':\n"
        f"    with Grader({f'{FUNCTIONS}:behave'!r}, workers=1, timeout_s=60) as grader:\n"
        "        print(int(grader.grade([task('pid')])[0].score), flush=True)\n"
        "        grader.grade([task('c')])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    trainer = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=environment)
    worker = int(trainer.stdout.readline())
    time.sleep(0.5)  # The worker is now inside of a C function that never returns.
    assert _runs(worker)
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    deadline = time.monotonic() + 5
    while _runs(worker):
        assert time.monotonic() < deadline, f"process {worker} is still there"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_grader_calls_compute_score_with_its_extra_info() -> None:
    with Grader(f"{FUNCTIONS}:compute_score", workers=1, timeout_s=30) as grader:
        extra = {"extra_info": {"index": 3}, "level": 1}
        given = GradingTask("the response", "truth", "", "the source", extra, "")
        assert grader.grade([given]) == [Grade(1.0, timed_out=False)]


def test_grader_lets_a_killed_process_cost_one_score(grader: Grader) -> None:
    grades = grader.grade([task("echo 1"), task("killed"), task("echo 2")])
    assert grades == [Grade(1.0, False), Grade(0.0, False, killed=True), Grade(2.0, False)]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux")
def test_grader_lets_too_much_memory_cost_one_score() -> None:
    with Grader(f"{FUNCTIONS}:behave", workers=1, timeout_s=60, memory_gb=0.25) as grader:
        grades = grader.grade([task("allocate 200"), task("allocate 300"), task("allocate 1")])
    assert grades == [Grade(1.0, False), Grade(0.0, False, killed=True), Grade(1.0, False)]


def test_grader_checks_ground_truths_singly_if_a_chunk_hangs(grader: Grader) -> None:
    values: list[Any] = ["fine"] * 100
    values[3], values[5], values[70], values[80] = "hang", 5, "type error", "crash"
    found = grader.check_ground_truths(values)
    assert len(found) == 100
    assert {index: why for index, why in enumerate(found) if why is not None} == {
        3: "reading it takes longer than reward.timeout_s = 1 s",
        5: "5 is no text: give a text",
        70: "check_ground_truth raised TypeError: no text",
        80: "reading it crashes the grader (exit status 41)",
    }
    assert grader.grade([task("echo 1")]) == [Grade(1.0, timed_out=False)]


def test_grader_accepts_all_ground_truths_without_a_check(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def score(response, ground_truth, **context): return 1")
    with Grader(f"{tmp_path / 'mine.py'}:score", workers=1, timeout_s=30) as grader:
        assert grader.check_ground_truths([None, {}, 3]) == [None] * 3


def test_grader_lets_a_function_import_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "beside_a.py").write_text("FACTOR = 2.0")
    (tmp_path / "beside_b.py").write_text("OFFSET = 0.5")
    (tmp_path / "mine.py").write_text(
        "from beside_a import FACTOR\n"
        "def score(response, ground_truth, **context):\n"
        "    from beside_b import OFFSET\n"
        "    return FACTOR + OFFSET\n"
    )
    path = list(sys.path)
    with Grader(f"{tmp_path / 'mine.py'}:score", workers=1, timeout_s=30) as grader:
        assert grader.grade([task("")]) == [Grade(2.5, timed_out=False)]
    assert sys.path == path


def test_grader_logs_prints_in_a_file_of_bounded_size(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "run" / "rewards.log"
    with Grader(f"{FUNCTIONS}:behave", workers=1, timeout_s=60, log=log) as grader:
        grader.grade([task("print hello")])
        assert sorted(log.read_text().splitlines()) == ["hello", "hello", "hello from C"]
        grader.grade([task(f"print {'x' * 2**20}")] * 8)
    assert log.stat().st_size == LARGEST_LOG
    out, err = capfd.readouterr()
    assert "hello" not in out + err


def test_grader_reports_hanging_responses_early(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Grader(f"{FUNCTIONS}:behave", workers=4, timeout_s=0.5) as grader:
        grader.grade([task("echo 1")] * 4)
        assert not caplog.records
        grader.grade([task("sleep")] * (EARLY + 1))
    (record,) = caplog.records
    assert "the first 8 of 9 responses all timed out after 0.5 s" in record.getMessage()


def test_grader_hands_over_several_quick_responses_at_once(tmp_path: Path) -> None:
    (tmp_path / "count.py").write_text(
        "import os\n\ndef calls(response, ground_truth, **_):\n"
        "    if response == 'end':\n        os.kill(os.getpid(), 9)\n"
        "    return float(response)\n"
    )
    with Grader(f"{tmp_path / 'count.py'}:calls", workers=1, timeout_s=30.0) as grader:
        tasks = [task(str(number)) for number in range(40)]
        assert [each.score for each in grader.grade(tasks)] == list(range(40))
        assert grader._together > 1
        # A task that loses its process is graded again, response by response.
        tasks[7] = task("end")
        grades = grader.grade(tasks)
        assert [number for number, each in enumerate(grades) if each.killed] == [7]
        assert [each.score for each in grades] == [n if n != 7 else 0 for n in range(40)]
        assert grader._together == 1


def test_grader_runs_a_quick_function_of_ours_here() -> None:
    before = multiprocessing.active_children()
    with Grader("integer", workers=1, timeout_s=1.0) as grader:
        assert [each.score for each in grader.grade([task("7", "7"), task("8", "7")])] == [1, 0]
        assert multiprocessing.active_children() == before
        with pytest.raises(RewardError, match=r"'integer' raised ValueError.*\n.*prompt 7"):
            grader.grade([task("7", "seven")])


def test_grade_some_begins_no_response_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = load_reward(f"{FUNCTIONS}:behave")
    monkeypatch.setattr(grader_process, "_reward", reward, raising=False)
    ticks = itertools.count(0.0, 0.04)
    outcomes, seconds = grade_some([task(f"echo {n}") for n in range(9)], lambda: next(ticks))
    assert outcomes == [0.0, 1.0, 2.0]
    assert seconds == pytest.approx(0.16)
