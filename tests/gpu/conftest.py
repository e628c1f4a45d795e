"""Fixtures of the tests that need a GPU, and the lines that they add to a file of results.

With `--rehearse` the same tests run on a CPU: on megatron-core's layers, or on Transformer Engine's
where its compiled functions are answered in torch (`te_on_cpu`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from gpu.measured import FAILED, NOT_RUN, OK, Measured, Results
from tiny_scoring import write_llama

RESULTS = pytest.StashKey[Results]()
SAID = 200
"""Characters of an error in its line; the log has all."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--results", type=Path, help="append one line of JSON per check to this file")
    parser.addoption("--section", default="gpu", help="name of the section in these lines")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fails a test whose numbers are wrong once it has measured all of them."""
    result = yield
    measured = item.funcargs.get("measured")
    assert measured is None or not measured.wrong, "; ".join(measured.wrong)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo
) -> Iterator[pytest.TestReport]:
    """Adds a line for a test that has no number, or that ended before it had measured all."""
    report = yield
    if report.when == "call" or (report.when == "setup" and not report.passed):
        measured = item.funcargs.get("measured")
        results, name = _results(item.config), _name(item)
        if report.skipped:
            results.write(name, NOT_RUN, value=report.longrepr[2].removeprefix("Skipped: "))
        elif report.failed and not (measured and measured.wrong):
            results.write(name, FAILED, value=call.excinfo.exconly()[:SAID])
        elif report.passed and not (measured and measured.count):
            results.write(name, OK)
    return report


def _results(config: pytest.Config) -> Results:
    if RESULTS not in config.stash:
        file = config.getoption("--results", default=None)
        config.stash[RESULTS] = Results(file, config.getoption("--section", default="gpu"))
    return config.stash[RESULTS]


def _name(item: pytest.Item) -> str:
    return item.name.removeprefix("test_")


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """Compares the test's numbers with limits."""
    return Measured(_results(request.config), _name(request.node))


@pytest.fixture(scope="session")
def cuda() -> bool:
    """False in a rehearsal."""
    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def one_rank() -> Iterator[None]:
    """The process groups of a run that is one process: NCCL's on a GPU."""
    from megatron_resrl.config.schema import ParallelConfig
    from megatron_resrl.platform.distributed import initialize, shutdown

    initialize(ParallelConfig(timeout_minutes=5.0), 0)
    yield
    shutdown()


@pytest.fixture(scope="session")
def engine(one_rank: None) -> bool:
    """Whether layers are Transformer Engine's."""
    from megatron_resrl.policy.layer_spec import uses_transformer_engine

    return uses_transformer_engine()


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model whose matrices are made of whole blocks of 128 x 128, which FP8 scales."""
    return write_llama(tmp_path_factory.mktemp("llama"), 256)


@pytest.fixture(scope="session")
def build(one_rank: None, llama: Path) -> Callable:
    """build("--precision.fp8=hybrid", ...) -> a trainable policy of `llama`, in bf16 by default."""
    from megatron_resrl.config.load import load_recipe
    from megatron_resrl.platform.distributed import initialize
    from megatron_resrl.policy.policy import Policy
    from megatron_resrl.rollout.worker import build_policy

    def built(*settings: str) -> Policy:
        recipe = load_recipe(
            None, (f"--model.path={llama}", "--precision.params_dtype=bf16", *settings)
        )
        initialize(recipe.parallel, 0)
        return build_policy(recipe)

    return built
