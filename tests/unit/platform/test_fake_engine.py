"""Transformer Engine's modules on the device without numbers: faults, products, memory."""

import subprocess
import sys
from pathlib import Path

import pytest
from te_on_cpu.suite import FOLDER, needs_engine

pytestmark = needs_engine

SCRIPT = Path(__file__).with_name("on_fake_engine.py")
FAULTS = {
    "takes_a_host_tensor": "AssertionError TransformerEngine needs CUDA",
    "takes_rows_of_another_width": "AssertionError GEMM not possible",
    "makes_a_module_on_the_host": "RuntimeError a kernel of Transformer Engine takes tensors",
    "rounds_rows_that_no_fp8_product_takes": "AssertionError FP8 execution requires",
    "asks_for_blocks_of_another_generation": "AssertionError Device compute capability 10.0",
    "calls_a_function_without_an_answer": "NotImplementedError transformer_engine_torch.swiglu",
}
COUNTS = {
    "multiplies_in_bf16": "True",
    "multiplies_in_fp8": "True False",
    "keeps_input_and_weights_in_fp8": "True",
    "norms_in_one_kernel": "1 512",
    "attends_in_one_kernel": "True True",
}


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    """Function of the script -> what it printed or raised."""
    names = (*FAULTS, *COUNTS)
    command = [sys.executable, "-W", "ignore", SCRIPT, FOLDER, *names]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    return dict(zip(names, done.stdout.splitlines(), strict=True))


@pytest.mark.parametrize(("fault", "message"), FAULTS.items())
def test_fake_engine_refuses_what_a_gpu_refuses(found, fault, message):
    assert found[fault].startswith(message)


@pytest.mark.parametrize(("what", "expected"), COUNTS.items())
def test_fake_engine_counts(found, what, expected):
    assert found[what] == expected
