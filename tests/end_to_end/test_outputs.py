"""What a run writes is what docs/outputs.md says, whatever texts it meets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ranks import REPOSITORY, run_command
from tiny_task import read_metrics, write_task

from megatron_resrl.observe.metric_names import find_metric
from megatron_resrl.observe.phases import PHASES

LINE_END = "\u2028"
REWARD = '''
def late(response, ground_truth, **context):
    """The first step's responses are all right, so that nothing is learnt from them."""
    return 1.0 if ground_truth.startswith("first") else even(response, ground_truth)
'''


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of two steps that was continued to three, with most measurements on."""
    directory = tmp_path_factory.mktemp("outputs")
    recipe = write_task(
        directory,
        steps=2,
        data__shuffle=False,
        optimizer__lr_decay_style="linear",
        optimizer__lr_decay_steps=3,
        optimizer__min_lr=0.001,
        algorithm__dual_clip=3.0,
        correction__method="token_tis",
        resrl__diagnose_every=1,
        resrl__logit_factor=True,
        reward__function=f"{directory / 'reward.py'}:late",
        rollout__group_size=8,
        checkpoint__save_every=1,
        logging__tensorboard=True,
    )
    (directory / "reward.py").open("a").write(REWARD)
    rows = [
        {"prompt": f"{n} {LINE_END} {n + 1}", "answer": f"{'first' if n < 7 else ''}{n}\u0085 "}
        for n in range(3, 19)
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (directory / "train.jsonl").write_text(lines, encoding="utf-8")
    for settings in ((), ("--steps=3",)):
        done = run_command("train", recipe, *settings)
        assert done.returncode == 0, done.stdout + done.stderr
    return directory / "run"


def test_metrics_of_a_run_are_all_in_the_table(run):
    logged = {name for line in (run / "metrics.jsonl").open() for name in json.loads(line)}
    assert not [name for name in sorted(logged) if find_metric(name) is None]
    assert {"interference/gradient", "lld/displaced_fraction", "correction/clipped"} <= logged
    assert {"clip_fraction/dual", "time/checkpoint_blocking", "eval/heldout/avg@2"} <= logged
    assert {f"memory/{name}_peak_bytes" for name in (*PHASES, "save")} <= logged


def test_outputs_page_explains_every_file(run):
    page = (REPOSITORY / "docs" / "outputs.md").read_text().split("## Who")[0]
    for path in run.iterdir():
        assert f"`{path.name}{'/' if path.is_dir() else ''}`" in page


def test_outputs_keep_texts_with_other_line_ends(run):
    samples = [json.loads(line) for line in (run / "samples.jsonl").open()]
    assert [sample["step"] for sample in samples] == [1, 1, 2, 2, 3, 3]
    assert not any("transcript" in sample for sample in samples)
    assert all(LINE_END in sample["prompt"] for sample in samples)
    assert all(sample["ground_truth"].endswith("\u0085 ") for sample in samples)


def test_times_name_phases_that_a_step_did_not_go_through(run):
    steps = [json.loads(line) for line in (run / "metrics.jsonl").open()][1:]
    assert steps[0]["update/without_signal"] == 1
    assert steps[0]["time/update"] == 0
    assert all({f"time/{name}" for name in PHASES} <= set(step) for step in steps)


def test_update_that_is_left_out_moves_the_schedule(run):
    first, second, third = read_metrics(run)[1:]
    assert first["update/without_signal"] == 1
    assert second["update/applied"] == third["update/applied"] == 1
    # Linear from 0.01 to 0.001 over three planned updates.
    assert second["learning_rate"] == pytest.approx(0.01 - 0.009 * 2 / 3)
    assert third["learning_rate"] == pytest.approx(0.001)
