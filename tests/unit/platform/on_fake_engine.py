"""Runs some of its functions on the device without numbers, with Transformer Engine's modules.

Arguments: folder of Transformer Engine's Python; names of functions. For each a line: what it
printed, or what it raised.
"""

from __future__ import annotations

import importlib
import sys

import torch

from megatron_resrl.platform.fake_device.device import FakeDevice
from megatron_resrl.platform.fake_device.engine.install import install_engine
from megatron_resrl.platform.fake_device.install import fake_device

H, F = 128, 256


def engine():
    return importlib.import_module("transformer_engine.pytorch")


def in_fp8():
    recipes = importlib.import_module("transformer_engine.common.recipe")
    return engine().fp8_autocast(enabled=True, fp8_recipe=recipes.Float8CurrentScaling())


def linear():
    return engine().Linear(H, F, bias=False, params_dtype=torch.bfloat16, device="cuda")


def rows(count: int, width: int = H) -> torch.Tensor:
    return torch.zeros(count, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)


def takes_a_host_tensor(device: FakeDevice) -> None:
    print(linear()(torch.zeros(16, H, dtype=torch.bfloat16)))


def takes_rows_of_another_width(device: FakeDevice) -> None:
    print(linear()(rows(16, H // 2)))


def makes_a_module_on_the_host(device: FakeDevice) -> None:
    module = engine().Linear(H, F, bias=False, params_dtype=torch.bfloat16, device="cpu")
    print(module(rows(16)))


def rounds_rows_that_no_fp8_product_takes(device: FakeDevice) -> None:
    with in_fp8():
        print(linear()(rows(12)))


def asks_for_blocks_of_another_generation(device: FakeDevice) -> None:
    recipes = importlib.import_module("transformer_engine.common.recipe")
    with engine().fp8_autocast(enabled=True, fp8_recipe=recipes.MXFP8BlockScaling()):
        print(linear()(rows(32)))


def calls_a_function_without_an_answer(device: FakeDevice) -> None:
    print(importlib.import_module("transformer_engine_torch").swiglu())


def multiplies_in_bf16(device: FakeDevice) -> None:
    module, x = linear(), rows(16)
    device.ledger.matrix_flops.clear()
    module(x).sum().backward()
    print(dict(device.ledger.matrix_flops) == {"bfloat16": 3 * 2 * 16 * H * F})


def multiplies_in_fp8(device: FakeDevice) -> None:
    module, x = linear(), rows(16)
    device.ledger.matrix_flops.clear()
    with in_fp8():
        out = module(x)
    out.sum().backward()
    print(sum(device.ledger.matrix_flops.values()) == 3 * 2 * 16 * H * F, "bfloat16" in
          device.ledger.matrix_flops)  # fmt: skip


def keeps_input_and_weights_in_fp8(device: FakeDevice) -> None:
    module, x = linear(), rows(1024)
    with in_fp8():
        module(x)  # What is kept for ever: workspaces.
        before = device.memory.total
        out = module(x)
    kept = device.memory.total - before - out.nbytes
    # The input for the product of the backward pass, weights for both passes, and two scales.
    print(kept == (1024 + 2 * F) * H + 2 * 512)


def norms_in_one_kernel(device: FakeDevice) -> None:
    norm = engine().RMSNorm(H, dtype=torch.bfloat16, device="cuda")
    x = rows(64)
    kernels, start = device.ledger.kernels, device.memory.total
    out = norm(x)
    print(device.ledger.kernels - kernels, device.memory.total - start - out.nbytes)


def attends_in_one_kernel(device: FakeDevice) -> None:
    attention = engine().DotProductAttention(
        4, 32, num_gqa_groups=2, attention_dropout=0.0, qkv_format="sbhd"
    )
    q, k = (
        torch.zeros(64, 2, heads, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for heads in (4, 2)
    )
    device.ledger.matrix_flops.clear()
    device.memory.start_peak()
    start = device.memory.total
    out = attention(q, k, k, attn_mask_type="causal")
    # The output, an fp32 number per query and head, and the state of dropout; no scores.
    small = device.memory.peak - start <= out.nbytes + 2 * 4 * 64 * 4 + 4 * 512
    flops = 2 * 2 * 2 * 4 * 32 * 64 * 64 // 2
    print(small, dict(device.ledger.matrix_flops) == {"bfloat16": flops})


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    install_engine()
    with fake_device(0, 1) as device:
        for name in sys.argv[2:]:
            try:
                globals()[name](device)
            except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
                print(type(error).__name__, str(error).splitlines()[0])


if __name__ == "__main__":
    main()
