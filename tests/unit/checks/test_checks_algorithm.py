"""Settings of algorithm, sampling and schedule that contradict each other are refused."""

from __future__ import annotations

import json

import pytest


@pytest.mark.parametrize(
    ("override", "said", "right"),
    [
        ("--rollout.top_p=0.9", "correction.method is none", "1.0, or set correction.method"),
        ("--rollout.top_k=50", "correction.method is none", "0, or set correction.method"),
        ("--rollout.temperature=0", "their advantages are 0", "above 0"),
    ],
)
def test_check_sampling_refuses_truncated_or_greedy_training(refused, override, said, right):
    problem = refused(override)
    assert problem.setting == override.removeprefix("--").partition("=")[0]
    assert said in problem.problem
    assert right in problem.fix


def test_evaluation_may_sample_as_it_likes(check):
    assert check("--evaluation.top_p=0.5", "--evaluation.temperature=0") == []


@pytest.mark.parametrize("quantiles", ["[0.8, 0.2]", "[0.5, 0.5]", "[-0.1, 0.5]", "[0.2, 1.2]"])
def test_quantiles_must_increase_between_zero_and_one(refused, quantiles):
    problem = refused(f"--resrl.quantiles={quantiles}")
    assert problem.setting == "resrl.quantiles"
    assert problem.fix == "it must be two increasing numbers between 0 and 1"


@pytest.mark.parametrize("beyond", [1, -1])
def test_layer_that_the_model_does_not_have_is_refused(check, refused, model, beyond):
    layers = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    edge = layers if beyond > 0 else -layers - 1
    assert check(f"--resrl.layer={edge}") == []
    problem = refused(f"--resrl.layer={edge + beyond}")
    assert (problem.setting, problem.value) == ("resrl.layer", edge + beyond)
    assert f"{-layers - 1} to {layers}" in problem.problem


def test_schedules_that_contradict_themselves_are_refused(refused):
    assert refused("--optimizer.min_lr=1").setting == "optimizer.min_lr"
    problem = refused("--optimizer.lr_warmup_steps=10", "--optimizer.lr_decay_steps=10")
    assert (problem.setting, problem.value) == ("optimizer.lr_decay_steps", 10)


def test_check_reward_needs_a_length_floor_beyond_its_plateau(refused):
    problem = refused("--reward.length_scaling=true", "--reward.length_floor_at=3000")
    assert (problem.setting, problem.value) == ("reward.length_floor_at", 3000)
    assert "3500" in problem.problem


@pytest.mark.parametrize("name", ["nsr", "psr", "w_reinforce", "rft"])
def test_kl_in_rewards_that_nobody_reads_is_refused(check, refused, name):
    settings = (f"--algorithm.name={name}", "--algorithm.kl_coefficient=0.1")
    assert check(*settings) == []
    assert refused(*settings, "--algorithm.kl_in=reward").setting == "algorithm.kl_in"


def test_kl_as_an_option_is_refused_with_the_setting(refused):
    problem = refused("--algorithm.options={kl: 0.1}")
    assert "set algorithm.kl_coefficient instead" in problem.problem


def test_unknown_algorithms_are_refused_with_the_nearest(refused):
    problem = refused("--algorithm.name=resrll")
    assert (problem.setting, problem.value) == ("algorithm.name", "resrll")
    assert "did you mean 'resrl'?" in problem.problem
    assert "grpo" in problem.fix


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("positive_wait: 0.1", "did you mean 'resrl.positive_weight'?"),
        ("positive_weight: -1", "positive_weight"),
        ("1: 2", "strings"),
    ],
)
def test_check_algorithm_refuses_unusable_options(refused, option, said):
    problem = refused(f"--algorithm.options={{{option}}}")
    assert problem.setting == "algorithm.options"
    assert said in problem.problem


@pytest.mark.setting("algorithm.weighting")
def test_check_weighting_wants_something_to_weigh(check, refused):
    assert check("--algorithm.name=gspo_token", "--algorithm.weighting=inverted") == []
    assert check("--algorithm.name=rft", "--algorithm.weighting=probability") == []
    problem = refused("--algorithm.name=rft", "--algorithm.weighting=constant")
    assert (problem.setting, problem.fix) == ("algorithm.weighting", "use none")
    problem = refused("--algorithm.weighting=constnt")
    assert (problem.setting, problem.value) == ("algorithm.weighting", "constnt")
    assert "did you mean 'constant'?" in problem.problem


def test_check_weighting_refuses_two_names(refused):
    problem = refused("--algorithm.weighting=constant", "--resrl.weights=random")
    assert (problem.setting, problem.fix) == ("resrl.weights", "leave one of them out")


def test_check_algorithm_corrects_a_mismatch_once(check, refused):
    dppo = ("--algorithm.name=dppo", "--algorithm.options={anchor: engine}")
    assert check(*dppo) == []
    assert check("--algorithm.name=dppo", "--correction.method=token_tis") == []
    problem = refused(*dppo, "--correction.method=token_tis")
    assert (problem.setting, problem.fix) == ("correction.method", "use none")
    assert "dppo has the ratio of trainer and engine" in problem.problem


@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("--algorithm.clip_low=0.1", "set algorithm.options.clip_low instead"),
        ("--algorithm.dual_clip=3.0", "leave it out"),
    ],
)
def test_check_algorithm_refuses_unused_clip_settings(check, refused, override, fix):
    assert check("--algorithm.name=gspo", "--algorithm.options={clip_low: 0.001}") == []
    assert check(override) == []
    problem = refused("--algorithm.name=gspo", override)
    assert problem.setting == override.removeprefix("--").partition("=")[0]
    assert (problem.problem, problem.fix) == ("gspo does not use it", fix)


def test_algorithm_of_the_users_own_is_looked_at(check, refused, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from megatron_resrl.algorithms.grpo import GRPO\n\n\nclass Mine(GRPO):\n    pass\n"
    )
    assert check(f"--algorithm.name={file}:Mine", "--algorithm.options={scale_by_std: false}") == []
    problem = refused(f"--algorithm.name={file}:Yours")
    assert problem.setting == "algorithm.name"
    assert problem.fix == "its algorithms are Mine"


@pytest.mark.setting("resrl.weights")
def test_check_weighting_refuses_unknown_names_with_the_nearest(check, refused):
    problem = refused("--resrl.weights=inverse")
    assert problem.setting == "resrl.weights"
    assert "did you mean 'inverted'?" in problem.problem
    assert "resrl, constant, random, inverted, " in problem.fix
    assert check("--resrl.weights=inverted") == []


@pytest.mark.parametrize(
    ("conflict", "said"),
    [
        ("--algorithm.updates_per_step=2", "begin with other weights"),
        ("--correction.method=sequence_tis", "whole responses"),
        ("--model.hidden_dropout=0.1", "drop outputs"),
        ("--model.attention_dropout=0.1", "drop attention weights"),
    ],
)
def test_single_pass_that_would_not_be_exact_is_refused(check, refused, conflict, said):
    prompts = "--rollout.prompts_per_step=2"
    assert check(conflict, prompts) == []
    problem = refused("--algorithm.single_pass=always", conflict, prompts)
    assert problem.setting == conflict.removeprefix("--").partition("=")[0]
    assert said in problem.problem
    assert problem.fix.endswith("or set algorithm.single_pass: auto")


@pytest.mark.parametrize(
    ("conflict", "said"),
    [
        ("--model.hidden_dropout=0.1", "drops other outputs"),
        ("--model.attention_dropout=0.1", "drops other attention weights"),
    ],
)
def test_shared_prompts_that_would_not_be_exact_are_refused(check, refused, conflict, said):
    assert check(conflict) == []
    problem = refused("--algorithm.shared_prompts=always", conflict)
    assert problem.setting == conflict.removeprefix("--").partition("=")[0]
    assert said in problem.problem
    assert problem.fix.endswith("or set algorithm.shared_prompts: auto")


def test_balanced_mini_batches_need_several(check, refused):
    balanced = "--algorithm.mini_batches=balanced"
    assert check(balanced, "--algorithm.updates_per_step=2", "--rollout.prompts_per_step=2") == []
    problem = refused(balanced)
    assert problem.setting == "algorithm.mini_batches"
    assert "one mini-batch has all groups" in problem.problem


@pytest.mark.parametrize("kind", ["micro_batch", "scoring_micro_batch"])
def test_token_budgets_hold_the_longest_response(check, refused, kind):
    lengths = ("--data.max_prompt_length=20", "--rollout.max_response_length=13")
    assert check(f"--algorithm.max_tokens_per_{kind}=32", *lengths) == []
    problem = refused(f"--algorithm.max_tokens_per_{kind}=31", *lengths)
    assert problem.setting == f"algorithm.max_tokens_per_{kind}"
    assert "fed as 32 tokens" in problem.problem
    assert problem.fix == "use at least 32"
