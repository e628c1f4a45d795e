"""Which ranks a dry run takes, and which layers they hold."""

import pytest
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_resrl.config.schema import ParallelConfig
from megatron_resrl.planning.layout import distinct_ranks, layers_of_stages, role_of


def parallel(stages: int) -> ParallelConfig:
    return ParallelConfig(tensor_model_parallel_size=8, pipeline_model_parallel_size=stages)


@pytest.mark.parametrize(
    ("stages", "world_size", "ranks"),
    [(1, 64, (7,)), (2, 64, (7, 39)), (3, 96, (7, 39, 71)), (8, 512, (7, 71, 455))],
)
def test_distinct_ranks_are_last_tensor_ranks_of_stages(stages, world_size, ranks):
    assert distinct_ranks(parallel(stages), world_size) == ranks


def test_distinct_ranks_have_the_stage_of_the_subspace():
    assert distinct_ranks(parallel(8), 512, subspace_stage=5) == (7, 71, 327, 455)


def test_role_of_names_stage_and_owner():
    assert role_of(0, 1, owns_subspace=True) == "all stages"
    assert role_of(0, 4, owns_subspace=False) == "first stage"
    assert role_of(2, 4, owns_subspace=False) == "middle stage"
    assert role_of(3, 4, owns_subspace=True) == "last stage, owner of the subspace"


def config(**fields) -> TransformerConfig:
    return TransformerConfig(
        num_attention_heads=1, hidden_size=8, pipeline_dtype="unused", **fields
    )


def test_layers_of_stages_are_shared_evenly():
    assert layers_of_stages(config(num_layers=4, pipeline_model_parallel_size=2)) == [
        [1, 2],
        [3, 4],
    ]


def test_layers_of_stages_go_round_in_chunks():
    interleaved = config(
        num_layers=8, pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2
    )
    assert layers_of_stages(interleaved) == [[1, 2, 5, 6], [3, 4, 7, 8]]


def test_layers_of_stages_follow_uneven_ends():
    uneven = config(
        num_layers=4, pipeline_model_parallel_size=2, num_layers_in_first_pipeline_stage=3
    )
    assert layers_of_stages(uneven) == [[1, 2, 3], [4]]


def test_layers_of_stages_follow_a_layout():
    written_out = config(
        num_layers=4, pipeline_model_parallel_size=2, pipeline_model_parallel_layout="Ettt|tL"
    )
    assert layers_of_stages(written_out) == [[1, 2, 3], [4]]
