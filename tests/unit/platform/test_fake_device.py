"""The device without numbers refuses what a GPU would refuse, and counts what it would do."""

from pathlib import Path

import pytest
from ranks import run_ranks

SCRIPT = Path(__file__).with_name("on_fake_device.py")
FAULTS = (
    "adds_a_host_tensor",
    "indexes_the_host_from_the_device",
    "multiplies_wrong_shapes",
    "forgets_the_device_of_a_factory",
    "reduces_a_host_tensor",
    "copies_into_a_wrong_view",
    "loses_a_module_on_the_host",
)
COUNTS = {
    "counts_a_product": "True",
    "counts_waits": "5",
    "moves_several_tensors_in_one_copy_each_type": "0 True True True",
    "counts_memory_until_it_is_free": "4194304 8388608 True",
    "gathers_numbers_of_all_ranks": "[12, 20]",
    "counts_what_a_ring_sends": "[('all_gather', 3000), ('all_reduce', 6000)]",
    "attends_in_one_kernel": "True",
}


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    """Function of the script -> what it printed or raised.

    In a process of its own, because the device takes CUDA's place for good.
    """
    names = (*FAULTS, *COUNTS)
    return dict(zip(names, run_ranks(SCRIPT, 1, *names).splitlines(), strict=True))


@pytest.mark.parametrize("fault", FAULTS)
def test_fake_device_refuses_what_a_gpu_refuses(found, fault):
    assert found[fault].split()[0] in ("RuntimeError", "FakeTensorDeviceMismatchError")


@pytest.mark.parametrize(("what", "expected"), COUNTS.items())
def test_fake_device_counts(found, what, expected):
    assert found[what] == expected
