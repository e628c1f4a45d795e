"""Models converted for Megatron-LM load into Transformer Engine's layers, its default."""

from __future__ import annotations

from pathlib import Path

import tiny_families
import tiny_megatron_lm as tiny
import torch
from te_on_cpu.suite import REPOSITORY, needs_engine, run_on_engine_layers
from transformers import AutoModelForCausalLM

from megatron_resrl.conversion.from_hugging_face import convert_hf_to_megatron

pytestmark = needs_engine
SCRIPT = REPOSITORY / "tests" / "unit" / "conversion" / "megatron_core_alone.py"
MODELS = ("qwen3", "qwen3_moe")


def test_engine_layers_load_what_is_converted_for_megatron_lm(tmp_path: Path) -> None:
    command: list[object] = ["-W", "ignore", SCRIPT, "engine"]
    for name in MODELS:
        model = AutoModelForCausalLM.from_config(tiny.CONFIGS[name], dtype=torch.float32)
        tiny_families.randomise(model)
        model.save_pretrained(tmp_path / name)
        megatron = tmp_path / f"{name}_megatron"
        convert_hf_to_megatron(str(tmp_path / name), str(megatron), format="megatron-lm")
        command += [tmp_path / f"{name}.pt", megatron]
    run_on_engine_layers(*command, timeout=600)
    for name in MODELS:
        with torch.no_grad():
            want = tiny_families.read_model(tmp_path / name)(tiny.TOKENS).logits[0]
        found = torch.load(tmp_path / f"{name}.pt")[:, : tiny.VOCABULARY]
        torch.testing.assert_close(found, want, atol=1e-5, rtol=0)
