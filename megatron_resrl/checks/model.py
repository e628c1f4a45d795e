"""The model's directory: what is supported, what divides, what fits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from megatron_resrl.checks.facts import Check, RunCheck
from megatron_resrl.config.model_place import find_model, read_json
from megatron_resrl.config.problems import Problem
from megatron_resrl.config.schema import ModelConfig, ParallelConfig
from megatron_resrl.policy.families import SUPPORTED_ARCHITECTURES, Family

_UNEVEN_STAGES = (
    "num_layers_in_first_pipeline_stage",
    "num_layers_in_last_pipeline_stage",
    "account_for_embedding_in_pipeline_split",
    "account_for_loss_in_pipeline_split",
    "pipeline_model_parallel_layout",
)
"""megatron-core fields that place layers otherwise than evenly; it checks those itself."""


def _unsupported(path: str, problem: str, fix: str) -> Problem:
    return Problem("model.path", path, problem, fix)


def _check_architecture(
    path: str, hf_config: Mapping[str, Any], family: Family | None
) -> Iterator[Problem]:
    if not hf_config:
        return
    if family is None:
        found = hf_config.get("architectures") or ["no architecture"]
        fix = f"supported are {', '.join(SUPPORTED_ARCHITECTURES)}"
        yield _unsupported(path, f"its config.json names {found[0]}", fix)
        return
    for problem, fix in family.problems():
        yield _unsupported(path, problem, fix)


def _check_rope_fusion(family: Family | None, fused: bool | None) -> Iterator[Problem]:
    if family is None or not fused:
        return
    if any(settings["rope_type"] == "yarn" for settings in family.rotary.values()):
        problem = "Transformer Engine's fused kernel leaves out what yarn multiplies attention with"
        yield Problem("model.megatron.apply_rope_fusion", fused, problem, "set it to false")


def _check_tensor_parallel(family: Family | None, size: int) -> Iterator[Problem]:
    if family is None or size <= 1:
        return
    for what, rule in family.indivisible(size):
        yield Problem(
            "parallel.tensor_model_parallel_size",
            size,
            f"the model has {what}",
            f"choose a size that {rule}",
        )


def _check_pipeline(
    parallel: ParallelConfig, layers: int | None, transformer_fields: Mapping[str, Any]
) -> Iterator[Problem]:
    ranks = parallel.pipeline_model_parallel_size
    chunks = parallel.virtual_pipeline_model_parallel_size or 1
    uneven = any(transformer_fields.get(field) for field in _UNEVEN_STAGES)
    if layers is None or uneven or ranks < 1 or chunks < 1 or layers % (ranks * chunks) == 0:
        return
    virtual = f" x {chunks} virtual stages" if chunks > 1 else ""
    yield Problem(
        "parallel.pipeline_model_parallel_size",
        ranks,
        f"the model has {layers} layers, not divisible by {ranks} pipeline ranks{virtual}",
        f"choose sizes whose product divides {layers}, or place layers with "
        f"model.megatron.{_UNEVEN_STAGES[0]}",
    )


def _check_positions(positions: int | None, prompt: int, response: int) -> Iterator[Problem]:
    """Of the model, and of the longest prompt and response."""
    if positions is not None and prompt + response > positions:
        yield Problem(
            "rollout.max_response_length",
            response,
            f"response budget larger than the model's positions: with data.max_prompt_length "
            f"{prompt} it makes {prompt + response} tokens, and max_position_embeddings is "
            f"{positions}",
            f"let the two add up to at most {positions}",
        )


def _check_special_tokens(path: str, hf_config: Mapping[str, Any]) -> Iterator[Problem]:
    size = hf_config.get("vocab_size")
    if size is None:
        return
    fix = f"correct config.json; token ids run from 0 to {size - 1}"
    for name in ("pad_token_id", "eos_token_id"):
        value = hf_config.get(name)
        if name == "pad_token_id" and isinstance(value, int) and value < 0:
            continue  # None, as Meta spells it; nothing is padded with it.
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(not 0 <= token < size for token in ids):
            what = "pad" if name == "pad_token_id" else "end-of-sequence"
            problem = f"out-of-vocabulary {what} token: its {name} is {value}"
            yield _unsupported(path, f"{problem}, its vocab_size is {size}", fix)


def _check_stop_tokens(stop: Sequence[int], size: int | None) -> Iterator[Problem]:
    if size is not None and any(not 0 <= token < size for token in stop):
        problem = f"out of the model's vocabulary of {size} tokens"
        yield Problem("rollout.stop_token_ids", stop, problem, f"use ids from 0 to {size - 1}")


def _check_generation_config(path: str, size: int | None) -> Iterator[Problem]:
    """Its end-of-sequence tokens end responses."""
    try:
        content = read_json(find_model(path).files / "generation_config.json")
    except (OSError, ValueError) as error:
        fix = "correct the file or remove it"
        yield _unsupported(path, f"its generation_config.json cannot be read ({error})", fix)
        return
    value = content.get("eos_token_id") if isinstance(content, dict) else None
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if size is not None and any(not isinstance(i, int) or not 0 <= i < size for i in ids):
        problem = f"its generation_config.json has eos_token_id {value}, which is no token"
        fix = f"correct the file; token ids run from 0 to {size - 1}"
        yield _unsupported(path, problem, fix)


def _check_recompute(model: ModelConfig) -> Iterator[Problem]:
    details = {
        "model.recompute_method": model.recompute_method,
        "model.recompute_num_layers": model.recompute_num_layers,
    }
    for setting, value in details.items():
        if model.recompute_granularity == "full" and value is None:
            problem = "full recomputation (model.recompute_granularity) needs it"
            fix = "set it, e.g. model.recompute_method uniform, model.recompute_num_layers 1"
            yield Problem(setting, value, problem, fix)
        if model.recompute_granularity != "full" and value is not None:
            problem = f"model.recompute_granularity is {model.recompute_granularity!r}"
            fix = "leave it out or set model.recompute_granularity to full"
            yield Problem(setting, value, problem, fix)


MODEL_CHECKS: tuple[RunCheck, ...] = (
    lambda facts: _check_architecture(facts.recipe.model.path, facts.hf_config, facts.family),
    lambda facts: _check_rope_fusion(
        facts.family, facts.recipe.model.megatron.get("apply_rope_fusion")
    ),
    lambda facts: _check_tensor_parallel(
        facts.family, facts.recipe.parallel.tensor_model_parallel_size
    ),
    lambda facts: _check_pipeline(
        facts.recipe.parallel,
        facts.hf_config.get("num_hidden_layers"),
        facts.recipe.model.megatron,
    ),
    lambda facts: _check_special_tokens(facts.recipe.model.path, facts.hf_config),
    lambda facts: _check_generation_config(
        facts.recipe.model.path, facts.hf_config.get("vocab_size")
    ),
    lambda facts: _check_recompute(facts.recipe.model),
)
"""For every stage."""
RESPONSE_CHECKS: tuple[Check, ...] = (
    lambda facts: _check_positions(
        facts.hf_config.get("max_position_embeddings"),
        facts.recipe.data.max_prompt_length,
        facts.recipe.rollout.max_response_length,
    ),
    lambda facts: _check_stop_tokens(
        facts.recipe.rollout.stop_token_ids or (), facts.hf_config.get("vocab_size")
    ),
)
"""For training and evaluation with responses."""
