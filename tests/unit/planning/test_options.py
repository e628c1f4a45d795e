"""Options of `plan` beside settings of the recipe."""

from __future__ import annotations

import pytest

from megatron_resrl.errors import SettingError
from megatron_resrl.planning.gpus import Rates
from megatron_resrl.planning.options import PlanOptions, options_parser, take_options


def test_options_leave_settings_to_the_recipe() -> None:
    options, rest = take_options(
        [
            "--nodes",
            "8",
            "--parallel.tensor_model_parallel_size",
            "4",
            "--gpus-per-node=4",
            "--resrl.layer",
            "-2",
            "--search",
            "--model.path=x",
            "--network_gb_s",
            "25",
        ]
    )
    assert (options.nodes, options.gpus_per_node, options.world_size) == (8, 4, 32)
    assert options.search
    assert not options.json
    assert options.rates == Rates(network_gb_s=25)
    assert rest == [
        *("--parallel.tensor_model_parallel_size", "4", "--resrl.layer", "-2", "--model.path=x"),
    ]


def test_options_have_the_defaults_of_one_h100_node() -> None:
    assert take_options([]) == (PlanOptions(), [])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--nodes"], "--nodes = None: no value follows it"),
        (["--nodes", "0"], "--nodes = '0': it is not a whole number of at least 1"),
        (["--gpus_per_node=two"], "--gpus_per_node = 'two'"),
        (["--matrix_tflops", "-3"], "--matrix_tflops = '-3': it is not a number of at least 0"),
        (["--nvlink_gb_s", "nan"], "--nvlink_gb_s = 'nan'"),
    ],
)
def test_options_refuse_what_is_no_value(given: list[str], said: str) -> None:
    with pytest.raises(SettingError) as error:
        take_options(given)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


def test_options_help_names_every_option() -> None:
    text = options_parser().format_help()
    names = {*vars(PlanOptions()), *vars(Rates())} - {"rates"}
    assert all(f"--{name}" in text for name in names)


def test_options_refuse_layers_that_do_not_exist() -> None:
    with pytest.raises(SettingError) as caught:
        take_options(["--layers", "apex"])
    assert str(caught.value) == (
        "--layers = 'apex': it is not transformer_engine or local; give transformer_engine or local"
    )
