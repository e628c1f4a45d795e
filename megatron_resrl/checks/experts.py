"""Mixture-of-experts models, and how the ranks share their experts."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_resrl.checks.facts import RunCheck, RunFacts
from megatron_resrl.config.problems import Problem
from megatron_resrl.config.schema import ParallelConfig
from megatron_resrl.policy.families.mixture import Mixture


def _sizes(parallel: ParallelConfig) -> tuple[int, int]:
    """Ranks that share the experts, and ranks that share one expert."""
    tensor = parallel.expert_tensor_parallel_size or parallel.tensor_model_parallel_size
    return parallel.expert_model_parallel_size, tensor


def _check_dense_model(parallel: ParallelConfig) -> Iterator[Problem]:
    problem = "the model has no experts"
    if parallel.expert_model_parallel_size > 1:
        setting = "parallel.expert_model_parallel_size"
        yield Problem(setting, parallel.expert_model_parallel_size, problem, "set it to 1")
    if parallel.expert_tensor_parallel_size is not None:
        setting = "parallel.expert_tensor_parallel_size"
        yield Problem(setting, parallel.expert_tensor_parallel_size, problem, "set it to null")


def _check_ranks(parallel: ParallelConfig, copies: int | None) -> Iterator[Problem]:
    """megatron-core's rule, and ours: a replica's ranks exchange tokens with the same ranks."""
    if copies is None:
        return
    model, tensor = _sizes(parallel)
    shared = model * tensor
    replica = parallel.tensor_model_parallel_size * parallel.context_parallel_size
    stage = replica * copies
    setting = "parallel.expert_model_parallel_size"
    asked = f"expert_model_parallel_size {model} x expert_tensor_parallel_size {tensor}"
    if shared < 1:
        return
    if stage % shared:
        yield Problem(
            setting,
            model,
            f"{shared} ranks ({asked}) are to share the experts, and a pipeline stage has {stage}",
            f"choose sizes whose product divides {stage}",
        )
    elif shared % replica and replica % shared:
        yield Problem(
            setting,
            model,
            f"{shared} ranks ({asked}) are to share the experts, and the {replica} ranks of a "
            "replica's stage (tensor x context parallel) would exchange tokens with different ones",
            f"choose sizes whose product divides {replica} or is a multiple of it",
        )


def _check_experts(mixture: Mixture, parallel: ParallelConfig) -> Iterator[Problem]:
    experts = mixture.experts
    if experts is None:
        return
    model, tensor = _sizes(parallel)
    if model >= 1 and experts % model:
        problem, fix = f"the model has {experts} experts", f"choose a size that divides {experts}"
        yield Problem("parallel.expert_model_parallel_size", model, problem, fix)
    name, inner = mixture.expert_size_field, mixture.expert_size
    if inner is not None and tensor >= 1 and inner % tensor:
        problem = f"the model's experts have an inner size ({name}) of {inner}"
        fix = f"choose a size that divides {inner}"
        yield Problem("parallel.expert_tensor_parallel_size", tensor, problem, fix)


def _check_expert_tensor_parallel(parallel: ParallelConfig, has_cuda: bool) -> Iterator[Problem]:
    model, tensor = _sizes(parallel)
    whole = parallel.tensor_model_parallel_size
    setting = "parallel.expert_tensor_parallel_size"
    if model == 1 and tensor != whole:
        yield Problem(
            setting,
            tensor,
            "with parallel.expert_model_parallel_size 1 megatron-core sums gradients of experts as "
            f"those of the other matrices, which are split over {whole} ranks",
            "set it to null, or split the experts with parallel.expert_model_parallel_size",
        )
    elif model > 1 and tensor > 1 and not has_cuda:
        yield Problem(
            setting,
            tensor,
            "experts that are split both ways do not run over gloo, and CUDA is absent",
            "set it to 1",
            "machine",
        )


def _check_sequence_parallel(parallel: ParallelConfig) -> Iterator[Problem]:
    if not parallel.sequence_parallel and parallel.tensor_model_parallel_size > 1:
        yield Problem(
            "parallel.sequence_parallel",
            False,
            "megatron-core trains experts under tensor parallelism only with it",
            "set it to true",
        )


def _check_routing(mixture: Mixture, path: str) -> Iterator[Problem]:
    if mixture.config.get("num_experts_per_tok") == 1 and mixture.divides_routing:
        yield Problem(
            "model.path",
            path,
            "its tokens go to one expert (num_experts_per_tok) whose weight is always 1 "
            f"({mixture.division_reason}), so that its router cannot learn",
            "use a model without it",
        )


def _of_the_model(facts: RunFacts) -> Iterator[Problem]:
    parallel, family = facts.recipe.parallel, facts.family
    if not isinstance(family, Mixture):
        if facts.hf_config:
            yield from _check_dense_model(parallel)
        return
    yield from _check_ranks(parallel, facts.data_parallel_size)
    yield from _check_experts(family, parallel)
    yield from _check_expert_tensor_parallel(parallel, facts.has_cuda)
    yield from _check_sequence_parallel(parallel)
    yield from _check_routing(family, facts.recipe.model.path)


EXPERT_CHECKS: tuple[RunCheck, ...] = (_of_the_model,)
