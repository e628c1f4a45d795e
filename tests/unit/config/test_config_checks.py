"""Every refusal names setting, value and what would be right; a good recipe has no problem."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_recipe import change_json, write_model, write_recipe
from transformers import MistralConfig, MixtralConfig

from megatron_resrl.config.checks import check_recipe, require_valid
from megatron_resrl.config.load import load_recipe
from megatron_resrl.config.problems import Problem, RecipeError

Refused = Callable[..., Problem]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def model(pristine: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pristine, tmp_path / "model")


@pytest.fixture
def check(model: Path, tmp_path: Path) -> Callable[..., list[Problem]]:
    """Checks the good recipe with overrides."""
    recipe = write_recipe(tmp_path, model)

    def run(
        *overrides: str, world_size: int = 1, command: str = "train", **config: Any
    ) -> list[Problem]:
        if config:
            change_json(model / "config.json", **config)
        return check_recipe(load_recipe(str(recipe), overrides), world_size, command)

    return run


@pytest.fixture
def refused(check: Callable[..., list[Problem]]) -> Refused:
    """The only problem of the good recipe with overrides; its line holds setting, value, fix."""

    def run(*overrides: str, **options: Any) -> Problem:
        problems = check(*overrides, **options)
        assert len(problems) == 1, [str(problem) for problem in problems]
        (problem,) = problems
        line = str(problem)
        assert "\n" not in line
        assert line.startswith(f"{problem.setting} = {problem.value!r}: ")
        assert line.endswith(problem.fix)
        return problem

    return run


def test_a_good_recipe_has_no_problem(check: Callable[..., list[Problem]]) -> None:
    assert check() == []
    assert check(command="eval") != []  # Only because it has no evaluation file.


def test_good_layouts_have_no_problem(check: Callable[..., list[Problem]]) -> None:
    tensor = ("--parallel.tensor_model_parallel_size=2", "--parallel.sequence_parallel=true")
    assert check(*tensor, world_size=2) == []
    # Two key-value heads are shared by four ranks.
    assert check("--parallel.tensor_model_parallel_size=4", world_size=4) == []
    assert check("--parallel.pipeline_model_parallel_size=2", world_size=4) == []
    virtual = "--parallel.virtual_pipeline_model_parallel_size=2"
    deep = check(
        "--parallel.pipeline_model_parallel_size=2", virtual, world_size=2, num_hidden_layers=4
    )
    assert deep == []


OUT_OF_RANGE = [
    ("seed", -1, "at least 0"),
    ("steps", 0, "at least 1"),
    ("model.attention_dropout", 1.0, "below 1"),
    ("parallel.timeout_minutes", 0.0, "above 0"),
    ("optimizer.lr", 0.0, "above 0"),
    ("optimizer.lr", -1e-6, "above 0"),
    ("optimizer.adam_beta2", 1.0, "below 1"),
    ("optimizer.clip_grad", -1.0, "at least 0"),
    ("data.max_prompt_length", 0, "at least 1"),
    ("rollout.group_size", 1, "at least 2"),
    ("rollout.temperature", -1.0, "at least 0"),
    ("rollout.top_p", 0.0, "above 0 and at most 1"),
    ("rollout.top_p", 1.5, "above 0 and at most 1"),
    ("rollout.top_k", -1, "at least 0"),
    ("reward.timeout_s", 0.0, "above 0"),
    ("reward.workers", 0, "at least 1"),
    ("algorithm.clip_low", 1.0, "below 1"),
    ("algorithm.clip_high", 0.0, "above 0"),
    ("algorithm.dual_clip", 1.0, "above 1, or null"),
    ("algorithm.micro_batch_size", 0, "at least 1"),
    ("resrl.rank", 0, "at least 1"),
    ("resrl.max_positive_tokens", 3, "at least 4"),
    ("resrl.floor", 1.1, "between 0 and 1"),
    ("optimizer.max_non_finite", 0, "at least 1"),
    ("checkpoint.keep_last", 0, "at least 1"),
    ("checkpoint.keep_every", -1, "at least 0"),
    ("checkpoint.preemption_exit_code", 256, "between 0 and 255"),
    ("evaluation.samples_per_prompt", 0, "at least 1"),
    ("evaluation.top_p", 0.0, "above 0"),
    ("correction.cap", 0.5, "at least 1"),
    ("correction.warn_kl", 0.0, "above 0"),
    ("correction.stop_kl", -1.0, "above 0"),
    ("logging.sample_responses", -1, "at least 0"),
]


@pytest.mark.parametrize(("setting", "value", "right"), OUT_OF_RANGE)
def test_numbers_out_of_range_are_refused(
    check: Callable[..., list[Problem]], setting: str, value: float, right: str
) -> None:
    problems = {problem.setting: problem for problem in check(f"--{setting}={value}")}
    assert problems[setting].value == value
    assert right in problems[setting].fix


@pytest.mark.parametrize("text", [".nan", ".inf"])
def test_a_learning_rate_that_is_no_number_is_refused(refused: Refused, text: str) -> None:
    problem = refused(f"--optimizer.lr={text}")
    assert (problem.setting, math.isfinite(problem.value)) == ("optimizer.lr", False)


def test_a_world_size_that_does_not_divide_names_all_sizes(refused: Refused) -> None:
    problem = refused(
        "--parallel.tensor_model_parallel_size=2",
        "--parallel.pipeline_model_parallel_size=2",
        world_size=6,
    )
    assert (problem.setting, problem.value) == ("world size", 6)
    for words in ("4 =", "tensor_model_parallel_size 2", "pipeline_model_parallel_size 2"):
        assert words in problem.problem
    assert "context_parallel_size 1" in problem.problem
    assert "a multiple of 4 ranks" in problem.fix


def test_sequence_parallel_without_tensor_parallel_is_refused(refused: Refused) -> None:
    problem = refused("--parallel.sequence_parallel=true")
    assert (problem.setting, problem.value) == ("parallel.sequence_parallel", True)
    assert "tensor_model_parallel_size is 1" in problem.problem


def test_context_parallelism_and_packed_sequences_are_accepted(
    check: Callable[..., list[Problem]],
) -> None:
    packed = "--algorithm.sequence_packing=true"
    assert check("--parallel.context_parallel_size=2", packed, world_size=2) == []


def test_virtual_stages_without_pipeline_are_refused(refused: Refused) -> None:
    problem = refused("--parallel.virtual_pipeline_model_parallel_size=2")
    assert problem.setting == "parallel.virtual_pipeline_model_parallel_size"
    assert "pipeline_model_parallel_size is 1" in problem.problem


@pytest.mark.parametrize(
    ("field", "value"), [("batch_p2p_comm", True), ("overlap_p2p_comm", False)]
)
def test_virtual_stages_with_batched_sends_are_refused(
    refused: Refused, field: str, value: bool
) -> None:
    problem = refused(
        "--parallel.pipeline_model_parallel_size=2",
        "--parallel.virtual_pipeline_model_parallel_size=2",
        f"--model.megatron.{field}={value}",
        world_size=2,
        num_hidden_layers=4,
    )
    assert (problem.setting, problem.value) == (f"model.megatron.{field}", value)
    assert "wrong gradients" in problem.problem


def test_prompts_must_divide_into_mini_batches(refused: Refused) -> None:
    problem = refused("--algorithm.updates_per_step=3")
    assert (problem.setting, problem.value) == ("rollout.prompts_per_step", 4)
    assert "updates_per_step, which is 3" in problem.problem
    assert "multiple of 3" in problem.fix


def test_prompts_of_a_mini_batch_must_divide_over_data_parallel_copies(refused: Refused) -> None:
    problem = refused("--algorithm.updates_per_step=2", world_size=4)
    assert (problem.setting, problem.value) == ("rollout.prompts_per_step", 4)
    assert "2 prompts per mini-batch" in problem.problem
    assert "4 data-parallel copies" in problem.problem
    assert "multiple of 8" in problem.fix


@pytest.mark.parametrize(
    ("config", "what", "right"),
    [
        ({"num_attention_heads": 6, "num_key_value_heads": 4}, "6 attention heads", "divides 6"),
        ({"num_attention_heads": 12, "num_key_value_heads": 3}, "3 key-value heads", "divides 3"),
        ({"intermediate_size": 42}, "an intermediate_size of 42", "divides 42"),
    ],
)
def test_tensor_parallel_size_must_fit_the_model(
    refused: Refused, config: dict[str, int], what: str, right: str
) -> None:
    problem = refused("--parallel.tensor_model_parallel_size=4", world_size=4, **config)
    assert (problem.setting, problem.value) == ("parallel.tensor_model_parallel_size", 4)
    assert what in problem.problem
    assert right in problem.fix


def test_layers_must_divide_into_stages(refused: Refused) -> None:
    problem = refused(
        "--parallel.pipeline_model_parallel_size=2",
        "--parallel.virtual_pipeline_model_parallel_size=2",
        world_size=2,
        num_hidden_layers=6,
    )
    assert (problem.setting, problem.value) == ("parallel.pipeline_model_parallel_size", 2)
    assert "6 layers" in problem.problem
    assert "2 virtual stages" in problem.problem
    assert "divides 6" in problem.fix


def test_uneven_stages_are_left_to_megatron_core(check: Callable[..., list[Problem]]) -> None:
    overrides = ("--parallel.pipeline_model_parallel_size=2",)
    uneven = "--model.megatron.num_layers_in_first_pipeline_stage=1"
    assert check(*overrides, uneven, world_size=2, num_hidden_layers=3) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_fp8_without_transformer_engine_and_cuda_is_refused(
    check: Callable[..., list[Problem]],
) -> None:
    problems = check("--precision.fp8=hybrid")
    assert {(p.setting, p.value) for p in problems} == {("precision.fp8", "hybrid")}
    text = " ".join(map(str, problems))
    assert "Transformer Engine is not installed; install the `te` extra" in text
    assert "CUDA is absent; set it to null" in text


def test_delayed_scaling_with_first_and_last_layers_in_bf16_is_refused(
    check: Callable[..., list[Problem]],
) -> None:
    problems = check(
        "--precision.fp8=hybrid",
        "--precision.fp8_recipe=delayed",
        "--model.megatron.first_last_layers_bf16=true",
    )
    (problem,) = [p for p in problems if p.setting != "precision.fp8"]
    assert (problem.setting, problem.value) == ("model.megatron.first_last_layers_bf16", True)
    assert "tensorwise" in problem.fix


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_optimizers_that_need_cuda_are_refused_without_it(refused: Refused) -> None:
    problem = refused("--optimizer.megatron.optimizer_cpu_offload=true")
    assert problem.setting == "optimizer.megatron.optimizer_cpu_offload"
    assert "CUDA" in problem.problem


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda model: shutil.rmtree(model), "there is no such directory"),
        (lambda model: (model / "config.json").unlink(), "it has no config.json"),
        (lambda model: (model / "config.json").write_text("{"), "not valid JSON"),
        (lambda model: (model / "model.safetensors").unlink(), "no *.safetensors file"),
        (
            lambda model: (model / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}'
            ),
            "it lacks model-2.safetensors",
        ),
        (
            lambda model: (model / "model.safetensors.index.json").write_text("[]"),
            "index.json cannot be read",
        ),
        (lambda model: (model / "tokenizer.json").unlink(), "none of tokenizer.json"),
        (lambda model: (model / "tokenizer.json").write_text("{"), "not valid JSON"),
    ],
)
def test_incomplete_model_directories_are_refused(
    refused: Refused, model: Path, broken: Callable[[Path], Any], said: str
) -> None:
    broken(model)
    problem = refused()
    assert (problem.setting, problem.value) == ("model.path", str(model))
    assert said in problem.problem


def test_a_recipe_without_model_is_refused(refused: Refused) -> None:
    problem = refused("--model.path=")
    assert (problem.setting, problem.problem) == ("model.path", "no model is given")
    assert "config.json" in problem.fix


@pytest.mark.parametrize(
    ("config", "said", "right"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel", "LlamaForCausalLM, Qwen2"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'", "default, linear"),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "dynamic"}},
            "rope_type is 'dynamic'",
            "llama3",
        ),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'", "only silu"),
        ({"use_sliding_window": True}, "sliding-window", "without it"),
        ({"layer_types": ["sliding_attention"]}, "sliding-window", "without it"),
        ({"attention_bias": True}, "attention_bias", "without it"),
        ({"mlp_bias": True}, "mlp_bias", "without it"),
        ({"quantization_config": {"bits": 4}}, "quantized", "unquantized"),
        ({"pad_token_id": 64}, "out-of-vocabulary pad token: its pad_token_id is 64", "0 to 63"),
        ({"pad_token_id": -1}, "out-of-vocabulary pad token: its pad_token_id is -1", "0 to 63"),
        ({"eos_token_id": [1, 99]}, "out-of-vocabulary end-of-sequence token", "0 to 63"),
    ],
)
def test_models_that_are_not_supported_are_refused(
    refused: Refused, model: Path, config: dict[str, Any], said: str, right: str
) -> None:
    problem = refused(**config)
    assert (problem.setting, problem.value) == ("model.path", str(model))
    assert said in problem.problem
    assert right in problem.fix


@pytest.mark.parametrize(
    "config",
    [
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}},
        {"rope_parameters": None, "rope_theta": 1e4, "rope_scaling": {"type": "linear"}},
        {"rope_parameters": None, "rope_theta": 1e4},
        {"pad_token_id": None},
        {"architectures": ["Qwen2ForCausalLM"], "attention_bias": True},
        {"architectures": ["Qwen3ForCausalLM"], "layer_types": ["full_attention"] * 2},
    ],
)
def test_supported_variants_have_no_problem(
    check: Callable[..., list[Problem]], config: dict[str, Any]
) -> None:
    assert check(**config) == []


def test_a_response_budget_beyond_the_positions_is_refused(refused: Refused) -> None:
    problem = refused("--rollout.max_response_length=120")
    assert (problem.setting, problem.value) == ("rollout.max_response_length", 120)
    assert "response budget larger than the model's positions" in problem.problem
    assert "136 tokens" in problem.problem
    assert "at most 128" in problem.fix


@pytest.mark.parametrize("architecture", ["MistralForCausalLM", "MixtralForCausalLM"])
def test_sequences_beyond_the_attention_window_are_refused(
    refused: Refused, architecture: str
) -> None:
    problem = refused(architectures=[architecture], sliding_window=31)
    assert (problem.setting, problem.value) == ("rollout.max_response_length", 16)
    for words in ("data.max_prompt_length 16", "32 tokens", "sliding_window is 31"):
        assert words in problem.problem
    assert "at most 31" in problem.fix


@pytest.mark.parametrize("architecture", ["MistralForCausalLM", "MixtralForCausalLM"])
@pytest.mark.parametrize("window", [32, None])
def test_sequences_within_the_attention_window_have_no_problem(
    check: Callable[..., list[Problem]], model: Path, architecture: str, window: int | None
) -> None:
    config = json.loads((model / "config.json").read_text())
    config |= {"architectures": [architecture], "sliding_window": window}
    (model / "config.json").write_text(json.dumps(config))
    budget = f"--rollout.max_response_length={16 if window else 100}"
    assert check(budget) == []


def test_without_a_window_in_the_file_the_one_of_transformers_counts(
    check: Callable[..., list[Problem]],
) -> None:
    budget = f"--rollout.max_response_length={MistralConfig().sliding_window - 15}"
    positions = {"max_position_embeddings": 8192}
    (problem,) = check(budget, architectures=["MistralForCausalLM"], **positions)
    assert "sliding_window is 4096" in problem.problem
    assert MixtralConfig().sliding_window is None
    assert check(budget, architectures=["MixtralForCausalLM"], **positions) == []


def test_stop_tokens_outside_the_vocabulary_are_refused(refused: Refused) -> None:
    problem = refused("--rollout.stop_token_ids=[1, 64]")
    assert (problem.setting, problem.value) == ("rollout.stop_token_ids", (1, 64))
    assert "0 to 63" in problem.fix


@pytest.mark.parametrize(
    ("overrides", "setting", "right"),
    [
        (("full", "null", "1"), "model.recompute_method", "uniform"),
        (("full", "block", "null"), "model.recompute_num_layers", "recompute_num_layers 1"),
        (("selective", "null", "1"), "model.recompute_num_layers", "leave it out"),
        (("null", "block", "null"), "model.recompute_method", "leave it out"),
    ],
)
def test_inconsistent_recomputation_is_refused(
    refused: Refused, overrides: tuple[str, str, str], setting: str, right: str
) -> None:
    granularity, method, layers = overrides
    problem = refused(
        f"--model.recompute_granularity={granularity}",
        f"--model.recompute_method={method}",
        f"--model.recompute_num_layers={layers}",
    )
    assert problem.setting == setting
    assert right in problem.fix


def test_a_tokenizer_without_chat_template_is_refused(refused: Refused, model: Path) -> None:
    (model / "chat_template.jinja").unlink()
    problem = refused()
    assert (problem.setting, problem.problem) == (
        "model.path",
        "the tokenizer has no chat template",
    )
    assert "data.apply_chat_template to false" in problem.fix


def test_a_chat_template_is_not_needed_for_plain_prompts(
    check: Callable[..., list[Problem]], model: Path
) -> None:
    (model / "chat_template.jinja").unlink()
    assert check("--data.apply_chat_template=false") == []
    change_json(model / "tokenizer_config.json", chat_template="{{ messages }}")
    assert check() == []


def test_a_separate_tokenizer_is_checked_instead(refused: Refused, tmp_path: Path) -> None:
    problem = refused(f"--model.tokenizer_path={tmp_path}/other")
    assert (problem.setting, problem.value) == ("model.tokenizer_path", f"{tmp_path}/other")


def test_a_pad_token_added_to_the_tokenizer_alone_is_refused(refused: Refused, model: Path) -> None:
    change_json(model / "tokenizer_config.json", pad_token="[PAD]")
    change_json(model / "tokenizer.json", added_tokens=[{"id": 64, "content": "[PAD]"}])
    problem = refused()
    assert problem.setting == "model.path"
    assert "out-of-vocabulary pad token: '[PAD]' has id 64" in problem.problem
    assert "vocab_size is 64" in problem.problem


@pytest.mark.parametrize(
    ("name", "content", "said", "right"),
    [
        ("none.jsonl", None, "there is no such file", "relative ones start from"),
        ("a.jsonl", "", "the file is empty", "with questions"),
        ("a.csv", "x", "unknown kind of file '.csv'", ".jsonl or .parquet"),
    ],
)
@pytest.mark.parametrize("setting", ["data.train_files", "evaluation.files"])
def test_unusable_data_files_are_refused(
    refused: Refused,
    tmp_path: Path,
    setting: str,
    name: str,
    content: str | None,
    said: str,
    right: str,
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_text(content)
    problem = refused(f"--{setting}=[{file}]")
    assert (problem.setting, problem.value) == (setting, str(file))
    assert said in problem.problem
    assert right in problem.fix


def test_training_without_data_is_refused_and_evaluation_without_questions_too(
    refused: Refused,
) -> None:
    assert refused("--data.train_files=[]").setting == "data.train_files"
    problem = refused("--data.train_files=[]", command="eval")
    assert (problem.setting, problem.problem) == (
        "evaluation.files",
        "there is nothing to evaluate",
    )


def test_evaluation_files_of_one_name_are_refused(refused: Refused, tmp_path: Path) -> None:
    files = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        files.append(tmp_path / folder / "test.jsonl")
        files[-1].write_text("{}\n")
    problem = refused(f"--evaluation.files=[{files[0]}, {files[1]}]")
    assert problem.setting == "evaluation.files"
    assert "'test'" in problem.problem


def test_pass_at_more_than_the_samples_is_refused(refused: Refused) -> None:
    problem = refused("--evaluation.pass_at=[1, 8]", "--evaluation.samples_per_prompt=4")
    assert (problem.setting, problem.value) == ("evaluation.pass_at", (1, 8))
    assert "samples_per_prompt is 4" in problem.problem
    assert "1 to 4" in problem.fix


@pytest.mark.parametrize(
    ("pattern", "said"), [("(", "not a valid regular expression"), ("a+", "0 groups, not one")]
)
def test_unusable_answer_patterns_are_refused(refused: Refused, pattern: str, said: str) -> None:
    problem = refused(f"--data.answer_pattern={pattern}")
    assert (problem.setting, problem.value) == ("data.answer_pattern", pattern)
    assert said in problem.problem


@pytest.mark.parametrize(
    ("override", "said", "right"),
    [
        ("--rollout.top_p=0.9", "correction.method none", "1.0, or correct"),
        ("--rollout.top_k=50", "correction.method none", "0, or correct"),
        ("--rollout.temperature=0", "teach nothing", "above 0"),
    ],
)
def test_truncated_or_greedy_training_samples_are_refused(
    refused: Refused, override: str, said: str, right: str
) -> None:
    problem = refused(override)
    assert problem.setting == override.removeprefix("--").partition("=")[0]
    assert said in problem.problem
    assert right in problem.fix


def test_evaluation_may_sample_as_it_likes(check: Callable[..., list[Problem]]) -> None:
    assert check("--evaluation.top_p=0.5", "--evaluation.temperature=0") == []


@pytest.mark.parametrize("quantiles", ["[0.8, 0.2]", "[0.5, 0.5]", "[-0.1, 0.5]", "[0.2, 1.2]"])
def test_quantiles_must_increase_between_zero_and_one(refused: Refused, quantiles: str) -> None:
    problem = refused(f"--resrl.quantiles={quantiles}")
    assert problem.setting == "resrl.quantiles"
    assert "[0.2, 0.8]" in problem.fix


@pytest.mark.parametrize("beyond", [1, -1])
def test_a_layer_that_the_model_does_not_have_is_refused(
    check: Callable[..., list[Problem]], refused: Refused, model: Path, beyond: int
) -> None:
    layers = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    edge = layers if beyond > 0 else -layers - 1
    assert check(f"--resrl.layer={edge}") == []
    problem = refused(f"--resrl.layer={edge + beyond}")
    assert (problem.setting, problem.value) == ("resrl.layer", edge + beyond)
    assert f"{-layers - 1} to {layers}" in problem.problem


def test_schedules_that_contradict_themselves_are_refused(refused: Refused) -> None:
    assert refused("--optimizer.min_lr=1").setting == "optimizer.min_lr"
    problem = refused("--optimizer.lr_warmup_steps=10", "--optimizer.lr_decay_steps=10")
    assert (problem.setting, problem.value) == ("optimizer.lr_decay_steps", 10)


def test_length_scaling_needs_its_floor_beyond_its_plateau(refused: Refused) -> None:
    problem = refused("--reward.length_scaling=true", "--reward.length_floor_at=3000")
    assert (problem.setting, problem.value) == ("reward.length_floor_at", 3000)
    assert "3500" in problem.problem


def test_unknown_algorithms_are_refused_with_the_nearest(refused: Refused) -> None:
    problem = refused("--algorithm.name=resrll")
    assert (problem.setting, problem.value) == ("algorithm.name", "resrll")
    assert "did you mean resrl?" in problem.fix
    assert "grpo" in problem.fix


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("positive_wait: 0.1", "did you mean 'positive_weight'?"),
        ("positive_weight: -1", "positive_weight"),
        ("1: 2", "strings"),
    ],
)
def test_unusable_algorithm_options_are_refused(refused: Refused, option: str, said: str) -> None:
    problem = refused(f"--algorithm.options={{{option}}}")
    assert problem.setting == "algorithm.options"
    assert said in problem.problem


@pytest.mark.parametrize(
    ("function", "said"),
    [("maths", "math"), ("none.py:score", "none.py"), ("{file}:missing", "missing")],
)
def test_unusable_reward_functions_are_refused(
    refused: Refused, tmp_path: Path, function: str, said: str
) -> None:
    file = tmp_path / "grade.py"
    file.write_text("def score(response, ground_truth):\n    return 1.0\n")
    problem = refused(f"--reward.function={function.format(file=file)}")
    assert problem.setting == "reward.function"
    assert said in str(problem)


def test_an_output_directory_that_is_a_file_is_refused(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    problem = refused(f"--output_dir={tmp_path}/taken")
    assert (problem.setting, problem.value) == ("output_dir", f"{tmp_path}/taken")


def test_all_problems_come_in_one_error_with_one_line_each(model: Path, tmp_path: Path) -> None:
    recipe = load_recipe(
        str(write_recipe(tmp_path, model)),
        [
            "--parallel.tensor_model_parallel_size=3",
            "--rollout.group_size=1",
            "--data.train_files=[]",
        ],
    )
    with pytest.raises(RecipeError) as error:
        require_valid(recipe, 4)
    lines = str(error.value).splitlines()
    assert lines[0] == f"{len(lines) - 1} problems in the recipe:"
    found = {problem.setting for problem in error.value.problems}
    assert found == {
        "world size",
        "parallel.tensor_model_parallel_size",
        "rollout.group_size",
        "data.train_files",
    }
