"""`megatron-resrl plan`, from the command line to the exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from planned_models import LLAMA_8B, QWEN_30B, write_config

from megatron_resrl.cli import main
from megatron_resrl.errors import UNUSABLE
from megatron_resrl.planning.command import DOES_NOT_FIT

FITS = [
    *("--parallel.tensor_model_parallel_size", "2", "--algorithm.micro_batch_size", "1"),
    *("--rollout.max_running_samples", "32"),
]


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    """Llama 3 8B by its config.json alone."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "model": {
                    "path": str(write_config(tmp_path / "model", LLAMA_8B)),
                    "recompute_granularity": "full",
                    "recompute_method": "uniform",
                    "recompute_num_layers": 1,
                },
                "rollout": {"prompts_per_step": 64, "group_size": 8},
            }
        )
    )
    return str(path)


def plan(*arguments: str) -> int:
    return main(["plan", *arguments, "--quick"])


def test_plan_that_fits_ends_with_0(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(recipe, *FITS) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "1 x 8 h100 with 79.6 GiB each: TP2 DP4; 8.03 billion parameters" in said.out
    assert said.out.endswith("\nfits\n")


def test_plan_that_does_not_fit_ends_with_1(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(recipe, "--gpu", "a100-40gb") == DOES_NOT_FIT
    said = capsys.readouterr().out
    assert "does not fit: " in said
    assert "parallel.tensor_model_parallel_size: 2" in said


def test_plan_says_when_the_cache_does_not_fit(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(recipe, *FITS, "--rollout.max_running_samples", "256") == DOES_NOT_FIT
    said = capsys.readouterr().out
    assert "does not fit: generation, all stages needs " in said
    assert "  - rollout.max_running_samples: 128 halves the key-value cache" in said


def test_plan_json_is_what_the_text_says(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(recipe, *FITS, "--json", "--response_tokens", "500") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is True
    assert found["step"]["response_tokens"] == 500
    assert found["gpu"]["name"] == "h100"


def test_plan_of_longer_responses_takes_longer(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = []
    for tokens in ("200", "2000"):
        assert plan(recipe, *FITS, "--json", "--response_tokens", tokens) == 0
        found = json.loads(capsys.readouterr().out)
        seconds.append(found["seconds"]["parts"]["update"])
    assert seconds[1] > seconds[0]


def test_plan_on_more_nodes_is_faster(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    seconds = []
    for nodes in ("1", "4"):
        assert plan(recipe, *FITS, "--json", "--nodes", nodes) == 0
        seconds.append(json.loads(capsys.readouterr().out)["seconds"]["parts"])
    assert seconds[1]["update"] < seconds[0]["update"] / 3
    # Decoding reads the weights for fewer rows, and as long.
    assert seconds[0]["generation"] / 5 < seconds[1]["generation"] < seconds[0]["generation"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpu", "rtx9"], "--gpu = 'rtx9': its rates are not known; known GPUs are a100-40gb"),
        (["--nodes", "0"], "--nodes = '0': it is not a whole number of at least 1"),
        (
            ["--gpus_per_node", "6", "--parallel.tensor_model_parallel_size", "4"],
            "world size = 6: not divisible by 4",
        ),
        (["--model.path", "/nowhere"], "model.path = '/nowhere': there is no such directory"),
        (["--model.path", ""], "model.path = '': no model is given"),
        (
            ["--nodes", "8", "--parallel.pipeline_model_parallel_size", "64"],
            "parallel.pipeline_model_parallel_size = 64: the model has 32 layers",
        ),
        (
            ["--rollout.engine", "vllm", "--vllm.environment", "{VLLM_CPU_KVCACHE_SPACE: '4'}"],
            "vllm.environment.VLLM_CPU_KVCACHE_SPACE = '4': only vLLM on a CPU reads it",
        ),
        (["--rollout.prompts_per_step", "60"], "rollout.prompts_per_step = 60: 60 prompts per"),
    ],
)
def test_plan_refuses_bad_input_in_a_sentence(
    recipe: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(recipe, *arguments) == UNUSABLE
    output = capsys.readouterr()
    assert output.out == ""
    assert said in output.err
    assert "Traceback" not in output.err
    assert len(output.err.splitlines()) <= 2


def test_plan_accepts_a_gpu_of_the_users_own(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = {
        "gpu_memory_gib": "96",
        "matrix_tflops": "1000",
        "memory_gb_s": "4000",
        "nvlink_gb_s": "400",
        "network_gb_s": "50",
    }
    given = [word for name, value in rates.items() for word in (f"--{name}", value)]
    assert plan(recipe, *FITS, "--gpu", "own", *given) == 0
    assert "1 x 8 own with 96.0 GiB each" in capsys.readouterr().out


def test_search_ranks_layouts_that_fit_by_seconds(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(recipe, "--search", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    fitting = [each["step_seconds"] for each in found if each["fits"]]
    assert fitting == sorted(fitting)
    assert [each["fits"] for each in found] == sorted((e["fits"] for e in found), reverse=True)
    layouts = {each["layout"].split()[0] for each in found}
    assert {"TP2", "TP4", "TP8", "DP8", "PP2"} <= layouts


def test_search_settings_give_the_same_plan(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(recipe, "--search", "--json") == 0
    best = json.loads(capsys.readouterr().out)[0]
    words = [f"--{name}={json.dumps(value)}" for name, value in best["settings"].items()]
    assert plan(recipe, *words, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["seconds"]["step"] == pytest.approx(best["step_seconds"])


def test_search_table_ends_with_settings_to_use(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(recipe, "--search") == 0
    said = capsys.readouterr().out
    assert " fit; needed: GiB of 79.6 with the margin" in said.splitlines()[0]
    assert "settings of the first:\n  --" in said


def test_search_without_a_layout_that_fits_ends_with_1(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(recipe, "--search", "--gpu_memory_gib", "3") == DOES_NOT_FIT
    said = capsys.readouterr().out
    assert "no layout fits; more GPUs, shorter responses, or what helps the first:" in said


def test_search_splits_experts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.yaml"
    model = write_config(tmp_path / "experts", QWEN_30B)
    path.write_text(f"model: {{path: {model}}}\nrollout: {{prompts_per_step: 64}}\n")
    assert plan(str(path), "--search", "--json", "--nodes", "2") == 0
    found = json.loads(capsys.readouterr().out)
    sizes = {word for each in found for word in each["layout"].split() if word[:2] == "EP"}
    assert {"EP2", "EP8", "EP16"} <= sizes


def test_search_tries_chunks_contexts_and_recomputation(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = ("--data.max_prompt_length", "2048", "--rollout.max_response_length", "8192")
    assert plan(recipe, "--search", "--json", *lengths) in (0, DOES_NOT_FIT)
    found = json.loads(capsys.readouterr().out)
    words = {word for each in found for word in each["layout"].split()}
    # 10240 tokens leave two ranks 4096, and not four. Pipelines of 8 stages take 8 micro-batches.
    assert {"VPP2", "VPP4", "CP2"} <= words
    assert "CP4" not in words
    recomputed = {each["settings"].get("model.recompute_granularity", "full") for each in found}
    assert recomputed == {None, "selective", "full"}
    assert all(
        each["settings"].get("model.recompute_method") is None
        for each in found
        if each["settings"].get("model.recompute_granularity", "full") == "selective"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--parallel.tensor_model_parallel_size", "3"],
            "parallel.tensor_model_parallel_size = 3: ",
        ),
        (
            ["--nodes", "8", "--parallel.pipeline_model_parallel_size", "64"],
            "parallel.pipeline_model_parallel_size = 64: the model has 32 layers",
        ),
        (["--model.path", "/nowhere"], "model.path = '/nowhere': there is no such directory"),
        (["--gpu", "rtx9"], "--gpu = 'rtx9': its rates are not known"),
    ],
)
def test_dry_run_plan_refuses_what_quick_refuses(
    recipe: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", recipe, *arguments]) == UNUSABLE
    output = capsys.readouterr()
    assert output.out == ""
    assert said in output.err
    assert "Traceback" not in output.err
