"""Checkpoints as Megatron-LM saves them are models like any other."""

from __future__ import annotations

import json
import os
import re
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import tiny_conversion
import tiny_families
import tiny_megatron_lm as tiny
import tiny_task
import torch
from common_object import store_common_as_object
from ranks import run_command, run_ranks
from servers_of import specs_of
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from megatron_resrl.checks.recipe import check_recipe
from megatron_resrl.config.schema import ModelConfig, Recipe, RolloutConfig
from megatron_resrl.conversion.to_hugging_face import convert_megatron_to_hf
from megatron_resrl.errors import InputError
from megatron_resrl.weights.config_json import read_config
from megatron_resrl.weights.inert_pickle import Inert, read_torch_file

HERE = Path(__file__).parent
ITERATION = "iter_0000100"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hugging Face models, a tokenizer, and what Megatron-LM would have saved of the models."""
    folder = tmp_path_factory.mktemp("megatron_lm")
    for number, (name, config) in enumerate(tiny.CONFIGS.items()):
        torch.manual_seed(number)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        tiny_families.randomise(model)
        model.save_pretrained(folder / "models" / name)
    tiny_task.write_model(folder / "models" / "task")
    tiny_families.tokenizer().save_pretrained(folder / "tokenizer")
    run_ranks(HERE / "ranks_megatron_lm.py", 2, folder / "models", folder / "saved")
    return folder


@pytest.fixture
def saved(work: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may change."""
    return Path(shutil.copytree(work / "saved" / "qwen3", tmp_path / "saved"))


def change_arguments(saved: Path, **changes: Any) -> None:
    """Of classes that are not installed, nothing is written again."""
    common = saved / ITERATION / "common.pt"
    content = read_torch_file(common)
    kept = {name: each for name, each in vars(content["args"]).items() if type(each) is not Inert}
    torch.save(content | {"args": Namespace(**kept | changes)}, common)


def test_load_of_megatron_lm_gives_every_layout_the_same_bits(work: Path) -> None:
    script = HERE / "ranks_load_megatron_lm.py"
    output = run_ranks(script, 2, work / "models", work / "saved", work / "tokenizer")
    line = next(line for line in output.splitlines() if line.startswith("RESULT "))
    assert json.loads(line.removeprefix("RESULT ")) == {name: [] for name in tiny.CONFIGS}


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_megatron_lm_to_hf_gives_transformers_logits(work: Path, tmp_path: Path, name: str) -> None:
    saved = work / "saved" / name
    convert_megatron_to_hf(str(saved), str(tmp_path / "hf"), tokenizer_path=str(work / "tokenizer"))
    want = tiny_conversion.tensors(work / "models" / name)
    assert tiny_conversion.differing(tiny_conversion.tensors(tmp_path / "hf"), want) == []
    assert (tmp_path / "hf" / "tokenizer.json").is_file()
    assert not (tmp_path / "hf" / "metadata.json").exists()
    tokens = torch.arange(60)[None]
    with torch.no_grad():
        ours, theirs = (
            tiny_families.read_model(path)(tokens).logits
            for path in (tmp_path / "hf", work / "models" / name)
        )
    assert torch.equal(ours, theirs)


def test_run_from_megatron_lm_equals_the_run_from_hf(work: Path, tmp_path: Path) -> None:
    model = work / "models" / "task"
    runs = {"hf": {"path": str(model)}}
    runs["megatron"] = {"path": str(work / "saved" / "task"), "tokenizer_path": str(model)}
    for name, settings in runs.items():
        (tmp_path / name).mkdir()
        recipe = tiny_task.write_task(tmp_path / name, steps=1, model=settings)
        run_ranks("-m megatron_resrl", 1, "train", recipe)
    first, second = (tmp_path / name / "run" for name in runs)
    assert tiny_task.read_metrics(second) == tiny_task.read_metrics(first)
    weights = [tiny_conversion.tensors(run / "hf") for run in (first, second)]
    assert tiny_conversion.differing(*weights) == []
    for folder in (second / "hf", second / "checkpoints" / "step_000001" / "hf"):
        config = json.loads((folder / "config.json").read_text())
        assert config["architectures"] == ["LlamaForCausalLM"]
        assert (config["vocab_size"], config["eos_token_id"]) == (64, 1)
        assert (folder / "tokenizer.json").is_file()
        assert not (folder / "metadata.json").exists()


def test_check_wants_the_tokenizer_of_megatron_lm(work: Path) -> None:
    path = str(work / "saved" / "qwen3")

    def problems(tokenizer: str | None) -> list[str]:
        found = check_recipe(Recipe(model=ModelConfig(path, tokenizer)), world_size=1)
        return [str(each) for each in found if each.setting.startswith("model.")]

    (problem,) = problems(None)
    assert problem == (
        f"model.tokenizer_path = None: the checkpoint of Megatron-LM in model.path {path!r} has no "
        "tokenizer; give a directory with the tokenizer of a Hugging Face model"
    )
    assert [each for each in problems(str(work / "tokenizer")) if "chat template" not in each] == []


def test_read_config_takes_an_iteration_a_release_and_the_folder(work: Path, saved: Path) -> None:
    expected = read_config(saved, work / "tokenizer")
    assert expected["vocab_size"] == tiny.VOCABULARY
    assert read_config(saved / ITERATION, work / "tokenizer") == expected
    (saved / ITERATION).rename(saved / "release")
    (saved / "latest_checkpointed_iteration.txt").write_text("release")
    assert read_config(saved, work / "tokenizer") == expected
    assert read_config(saved / "release") == expected | {"vocab_size": 256} | dict.fromkeys(
        ("bos_token_id", "eos_token_id", "pad_token_id")
    )


def test_read_config_prefers_the_argument_of_the_vocabulary(saved: Path) -> None:
    change_arguments(saved, vocab_size=130)
    assert read_config(saved)["vocab_size"] == 130


def test_read_config_finds_arguments_that_lie_in_shards(work: Path, saved: Path) -> None:
    expected = read_config(saved, work / "tokenizer")
    change_arguments(saved)
    store_common_as_object(saved / ITERATION)
    assert read_config(saved, work / "tokenizer") == expected


def test_servers_read_the_config_of_megatron_lm(work: Path, tmp_path: Path) -> None:
    model = ModelConfig(str(work / "saved" / "task"), str(work / "models" / "task"))
    recipe = Recipe(output_dir=str(tmp_path), model=model, rollout=RolloutConfig(engine="vllm"))
    (spec,) = specs_of(recipe)
    served = Path(spec.arguments[spec.arguments.index("--model") + 1])
    assert served.parent == tmp_path / "vllm"
    assert AutoConfig.from_pretrained(served).architectures == ["LlamaForCausalLM"]
    assert AutoTokenizer.from_pretrained(served).eos_token_id == 1


def test_read_config_refuses_a_larger_tokenizer(work: Path, saved: Path) -> None:
    change_arguments(saved, padded_vocab_size=128)
    with pytest.raises(InputError, match="padded_vocab_size is 128, and the tokenizer has 131"):
        read_config(saved, work / "tokenizer")


class MakesADirectory:
    """Pickled as a call of `os.mkdir`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_check_refuses_arguments_that_would_run_code(saved: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    change_arguments(saved, kind=MakesADirectory(made))
    found = check_recipe(Recipe(model=ModelConfig(str(saved))), world_size=1)
    (problem,) = (each for each in found if each.setting == "model.path")
    assert "reading its arguments would run posix.mkdir" in problem.problem
    assert problem.fix == "do not use this checkpoint"
    with pytest.raises(InputError, match=r"would run posix\.mkdir"):
        convert_megatron_to_hf(str(saved), str(tmp_path / "hf"))
    assert not made.exists()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"add_qkv_bias": True},
            r"lacks weights.*: decoder\.layers\.self_attention\.linear_qkv\.bias",
        ),
        ({"num_layers": 1}, r"Global shape mismatch .*\[2, 32"),
        ({"untie_embeddings_and_output_weights": True}, r"lacks weights.*: output_layer\.weight"),
    ],
)
def test_run_refuses_arguments_unlike_the_weights(
    work: Path, tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    saved = Path(shutil.copytree(work / "saved" / "task", tmp_path / "saved"))
    change_arguments(saved, **changes)
    settings = {"path": str(saved), "tokenizer_path": str(work / "models" / "task")}
    recipe = tiny_task.write_task(tmp_path, steps=1, model=settings)
    done = run_command("train", recipe)
    assert done.returncode == 2, done.stderr
    assert re.search(match, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
