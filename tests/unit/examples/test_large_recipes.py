"""Recipes for GPUs: each can be run and fits, and its page prints what `plan` prints."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny_recipe import write_model
from transformers import AutoTokenizer

from megatron_resrl.checks.recipe import inspect_recipe
from megatron_resrl.cli import main
from megatron_resrl.config.load import load_recipe
from megatron_resrl.config.stages import STAGES, Stage
from megatron_resrl.preparation.prepare import prepare_data

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "examples"
QUESTIONS = ROOT / "tests/data/questions"
LLAMA_8B = "pretrain_to_rl/llama_8b"


@dataclass(frozen=True)
class Case:
    """A recipe and the GPUs that train."""

    recipe: str
    model: str
    gpus: int
    stage: Stage = "train"


CASES = (
    Case("gsm8k_qwen3_0.6b_1gpu/recipe.yaml", "qwen3-0.6b", 1),
    Case("paper/math/recipe.yaml", "qwen3-4b", 8),
    Case("paper/code/recipe.yaml", "qwen3-4b", 8),
    Case("paper/function_calling/recipe.yaml", "qwen3-4b", 8),
    Case("paper/agents/alfworld/recipe.yaml", "qwen3-4b", 8),
    Case("paper/agents/webshop/recipe.yaml", "qwen3-4b", 8),
    Case("math_qwen3_8b_32xh100_async/recipe.yaml", "qwen3-8b", 16),
    Case("llama3_70b_64xh100_fp8/recipe.yaml", "llama-3.1-70b", 64),
    Case("qwen3_30b_a3b_32xh100/recipe.yaml", "qwen3-30b-a3b", 32),
    *(
        Case(f"{LLAMA_8B}/{name}.yaml", "llama-3-8b", gpus, stage)
        for name, stage in (("pretrain", "pretrain"), ("sft", "sft"), ("train", "train"))
        for gpus in (8, 64)
    ),
)
PAGES = (
    "docs/scale.md",
    *(
        f"examples/{path}"
        for path in sorted({f"{Path(case.recipe).parent}/README.md" for case in CASES})
    ),
)
BLOCK = re.compile(r"^```text\n\$ megatron-resrl (plan [^\n]*)\n(.*?)^```", re.M | re.S)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with stand-ins for the files that recipes name: real shapes, small tokenizers."""
    folder = tmp_path_factory.mktemp("recipes")
    tiny = write_model(folder / "tiny")
    (tiny / "model.safetensors").unlink()
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }} {% endfor %}"
        "{% if not enable_thinking %}3 4{% endif %}"
    )
    tokenizer.save_pretrained(tiny)
    for shape in sorted(path.parent for path in EXAMPLES.glob("models/*/config.json")):
        shutil.copytree(tiny, folder / "models" / shape.name)
        shutil.copy(shape / "config.json", folder / "models" / shape.name)
    shutil.copytree(tiny, folder / "models/Llama-3-tokenizer")
    (folder / "examples").symlink_to(EXAMPLES)
    data = folder / "data"
    shutil.copytree(QUESTIONS, data)
    _write_prepared(data)
    row = {"messages": [{"role": r, "content": "3 4"} for r in ("user", "assistant")]}
    for name in ("conversations", "conversations_heldout"):
        (data / f"{name}.jsonl").write_text(f"{json.dumps(row)}\n" * 2)
    for name, column in (("alfworld", {"game": "3 4"}), ("webshop", {"goal": 3})):
        task = json.dumps({"prompt": "3 4", "answer": "-"} | column)
        for part in ("", "_train"):
            (data / f"{name}{part}.jsonl").write_text(f"{task}\n")
    return folder


def _write_prepared(folder: Path) -> None:
    """Files of tools/prepare_data.py, where recipes name those."""
    task = {"problem": "3 4", "tests": [{"input": "3", "output": "4"}]}
    asked = {
        "id": "irrelevance_0",
        "question": [[{"role": "user", "content": "3 4"}]],
        "function": [{"name": "add", "parameters": {"type": "dict", "properties": {}}}],
    }
    published = {name: QUESTIONS / f"{name}.parquet" for name in ("aime25", "dapo_math_17k")}
    published |= dict.fromkeys(("minerva", "olympiad"), QUESTIONS / "math500.parquet")
    function = {
        "prompt": 'def four():\n    """3 4"""\n',
        "entry_point": "four",
        "test": "def check(candidate):\n    assert candidate() == 4\n",
    }
    published["toolrl"] = QUESTIONS / "toolrl_test.parquet"
    published["bfcl"] = folder / "bfcl_published.jsonl"
    published["bfcl"].write_text(json.dumps(asked))
    for name in ("deepcoder", "codeforces", "livecodebench", "humaneval_plus"):
        published[name] = folder / f"{name}_published.jsonl"
        published[name].write_text(json.dumps(function if name == "humaneval_plus" else task))
    for name, source in published.items():
        (folder / f"{name}.parquet").unlink(missing_ok=True)
        prepare_data(name, str(folder), source=[str(source)])


SIZES = re.compile(r"^\| (Qwen3-\S+) \| (?:`(.*?)`)? ?\|$", re.M)
"""Model and options, in the pages of the paper's recipes."""


KINDS = ("math", "code", "function_calling", "agents/alfworld", "agents/webshop")


@pytest.mark.parametrize("kind", KINDS)
def test_paper_recipe_fits_in_every_size(kind, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    sizes = SIZES.findall((EXAMPLES / f"paper/{kind}/README.md").read_text())
    assert [model for model, _ in sizes] == ["Qwen3-1.7B", "Qwen3-4B", "Qwen3-8B"]
    for model, options in sizes:
        shape = f"--model.path=examples/models/{model.lower()}"
        given = [*shlex.split(options), shape, "--quick", "--response_tokens=1000"]
        assert main(["plan", f"examples/paper/{kind}/recipe.yaml", *given]) == 0, model
        assert capsys.readouterr().out.rstrip().endswith("\nfits"), model


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.recipe}-{case.gpus}")
def test_large_recipe_has_no_problem_on_its_gpus(case, place, monkeypatch):
    monkeypatch.chdir(place)
    shape = [f"--model.path=models/{case.model}"]
    recipe = load_recipe(str(EXAMPLES / case.recipe), shape, STAGES[case.stage])
    problems = inspect_recipe(recipe, case.gpus, case.stage, "cuda")
    # A downloaded model has weights, a corpus its token files, and an environment its package.
    assert [str(each) for each in problems if each.kind == "recipe"] == []


@pytest.mark.parametrize("page", PAGES)
def test_page_prints_what_plan_prints(page, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    blocks = BLOCK.findall((ROOT / page).read_text())
    assert blocks
    for command, printed in blocks:
        assert main(shlex.split(command)) == 0, command
        said = iter(capsys.readouterr().out.splitlines())
        # Some lines are left out, in order.
        missing = [line for line in printed.splitlines() if line not in said]
        assert not missing, command


def test_pages_plan_every_large_recipe():
    planned = {
        (shlex.split(command)[1], "--nodes 8 " in command + " ")
        for page in PAGES
        for command, _ in BLOCK.findall((ROOT / page).read_text())
    }
    for case in CASES:
        assert (f"examples/{case.recipe}", case.gpus == 64) in planned, case


UPDATE_MEMORY = re.compile(r"^  update +\S.*? ([\d.]+) +([\d.]+)  (?:yes|no) ", re.M)
"""Peak and needed."""
STEP = re.compile(
    r"a step: (?P<step>\S+) s = generation (?P<generation>\S+) \+ scoring (?P<scoring>\S+) "
    r"\+ update (?P<update>\S+) \+ weight_transfer (?P<weights>\S+)"
)


def _scale_page() -> str:
    return (ROOT / "docs/scale.md").read_text()


def test_scale_table_of_gpus_is_that_of_its_plans():
    plans = {
        re.search(r"--nodes (\d+)", plan)[1]: said for plan, said in BLOCK.findall(_scale_page())
    }
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (TP.*?) \| (.*) \|$", _scale_page(), re.M)
    assert {nodes for _, nodes, _, _ in rows} == plans.keys()
    for gpus, nodes, layout, numbers in rows:
        said = plans[nodes]
        assert int(gpus) == 8 * int(nodes)
        assert layout.removesuffix(" DP1") == re.search(r"GiB each: (TP[^;]*);", said)[1]
        step = STEP.search(said)
        names = ("generation", "scoring", "update", "weights", "step")
        expected = [UPDATE_MEMORY.search(said)[2], *(step[name] for name in names)]
        assert numbers.split(" | ") == expected


def test_scale_table_of_layouts_is_what_plan_prints(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    plan = next(plan for plan, _ in BLOCK.findall(_scale_page()) if "--nodes 8 " in plan)
    section = _scale_page().split("## Why this layout")[1].split("\n## ")[0]
    rows = re.findall(
        r"^\| (.*?) \| (?:`(.*?)`: )?update (.*) s and (.*) GiB, step (.*) s \|$", section, re.M
    )
    assert len(rows) == 4
    for _, options, *numbers in rows:
        main([*shlex.split(plan), *shlex.split(options)])
        said = capsys.readouterr().out
        step = STEP.search(said)
        assert numbers == [step["update"], UPDATE_MEMORY.search(said)[2], step["step"]], options
