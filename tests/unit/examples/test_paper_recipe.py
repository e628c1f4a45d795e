"""The paper's recipe holds the paper's numbers and can be run; its README's snippet works."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_recipe import write_model
from transformers import AutoTokenizer

from megatron_resrl.checks.recipe import inspect_recipe
from megatron_resrl.config.load import load_recipe

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "examples/math_qwen3_4b_8xh100"
QUESTIONS = ROOT / "tests/data/questions"

PAPER = {
    "data.max_prompt_length": 2048,
    "data.chat_template_kwargs": {"enable_thinking": False},
    "rollout.prompts_per_step": 256,
    "rollout.group_size": 4,
    "rollout.max_response_length": 4096,
    "rollout.temperature": 1.0,
    "rollout.top_p": 1.0,
    "rollout.top_k": 0,
    "optimizer.lr": 1e-6,
    "optimizer.lr_warmup_steps": 10,
    "optimizer.lr_decay_style": "constant",
    "optimizer.weight_decay": 0.1,
    "reward.function": "math",
    "reward.length_scaling": True,
    "reward.length_full_until": 3500,
    "reward.length_floor_at": 4096,
    "reward.length_floor": 0.7,
    "algorithm.name": "resrl",
    "algorithm.updates_per_step": 4,
    "algorithm.clip_low": 0.2,
    "algorithm.clip_high": 0.2,
    "algorithm.dual_clip": None,
    "algorithm.aggregation": "sequence_mean",
    "resrl.rank": 64,
    "resrl.max_positive_tokens": 4096,
    "resrl.quantiles": (0.2, 0.8),
    "resrl.floor": 0.1,
    "resrl.positive_weight": 0.1,
    "resrl.positives": "advantage",
    "resrl.layer": -2,
    "resrl.weights": "residual",
    "evaluation.samples_per_prompt": 16,
    "evaluation.temperature": 0.6,
    "evaluation.top_p": 0.95,
}
"""arXiv 2605.00380: the maths recipe, for Qwen3-4B on DAPO-Math-17k."""
QWEN3_4B = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "max_position_embeddings": 40960,
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 151936,
}
"""As published."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with stand-ins for the files that the recipe names."""
    folder = tmp_path_factory.mktemp("paper")
    model = write_model(folder / "models/Qwen3-4B")
    (model / "config.json").write_text(json.dumps(QWEN3_4B))
    (model / "model.safetensors").unlink()
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }} {% endfor %}"
        "{% if not enable_thinking %}3 4{% endif %}"
    )
    tokenizer.save_pretrained(model)
    (folder / "data").mkdir()
    for name in ("dapo_math_17k", "aime24", "aime25", "amc23", "math500"):
        shutil.copy(QUESTIONS / f"{name}.parquet", folder / "data")
    for name in ("minerva", "olympiad"):
        shutil.copy(QUESTIONS / "math500.parquet", folder / f"data/{name}.parquet")
    return folder


def test_paper_recipe_has_every_number_of_the_paper():
    recipe = load_recipe(FOLDER / "recipe.yaml")
    found = {}
    for name in PAPER:
        section, key = name.split(".")
        found[name] = getattr(getattr(recipe, section), key)
    assert found == PAPER
    # One epoch, of the distinct questions.
    assert recipe.steps == 17_300 // 256
    assert recipe.model.path.endswith("Qwen3-4B")


def test_paper_recipe_has_no_problem_on_eight_gpus(place, monkeypatch):
    monkeypatch.chdir(place)
    recipe = load_recipe(FOLDER / "recipe.yaml")
    found = [each for each in inspect_recipe(recipe, 8, target="cuda") if each.kind == "recipe"]
    assert found == [], "\n".join(map(str, found))


def test_paper_readme_keeps_the_first_of_each_question(tmp_path, monkeypatch):
    prompts = [[{"role": "user", "content": text}] for text in ("a", "b", "a", "c", "b")]
    table = pa.table({"prompt": prompts, "place": [0, 1, 2, 3, 4]})
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data/dapo-math-17k.parquet")
    snippet = re.search(r"```python\n(.*?)```", (FOLDER / "README.md").read_text(), re.S)[1]
    monkeypatch.chdir(tmp_path)
    exec(re.sub(r"^  ", "", snippet, flags=re.M), {})
    kept = pq.read_table(tmp_path / "data/dapo_math_17k.parquet")
    assert kept["place"].to_pylist() == [0, 1, 3]


def test_files_call_no_default_the_one_of_the_paper_wrongly():
    """A default beside the paper's number says so in its docstring."""
    schema = "".join(
        (ROOT / f"megatron_resrl/config/{name}.py").read_text()
        for name in ("schema", "schema_questions", "schema_rollout")
    )
    for setting, said in (
        ("updates_per_step: Annotated[int, at_least(1)] = 1", "paper: 4"),
        ("length_scaling: bool = False", "paper: true"),
        ("samples_per_prompt: Annotated[int, at_least(1)] = 4", "paper: 16"),
        ('positives: Literal["score", "advantage"] = "score"', "(the paper)"),
    ):
        docstring = schema.split(setting, 1)[1].split('"""')[1]
        assert said in docstring, setting
