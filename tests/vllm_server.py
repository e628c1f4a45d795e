"""Real vLLM servers on CPU for tests, and the tiny models that its kernels can run."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import torch
from served_engine import vllm_python
from tiny_families import randomise, tokenizer
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

_SHAPE: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 4096,
}


def served_configs() -> dict[str, PretrainedConfig]:
    """Configurations whose heads are as large as vLLM's CPU attention wants them (32)."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    return {
        "llama_tied": LlamaConfig(**_SHAPE, tie_word_embeddings=True),
        "qwen3": Qwen3Config(**_SHAPE, head_dim=32, tie_word_embeddings=False),
        "qwen3_moe": Qwen3MoeConfig(**_SHAPE, **experts, head_dim=32, norm_topk_prob=True),
        "gemma3": Gemma3TextConfig(
            **_SHAPE,
            head_dim=32,
            query_pre_attn_scalar=48,
            sliding_window=64,
            layer_types=["sliding_attention", "full_attention"],
        ),
    }


def write_served(directory: Path, name: str, *, seed: int) -> Path:
    """Saves a random model in fp32 and its tokenizer."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(served_configs()[name], dtype=torch.float32)
    randomise(model)
    model.save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory


@contextlib.contextmanager
def vllm_server(
    model: Path,
    log: Path,
    arguments: list[str],
    environment: dict[str, str],
    *,
    dtype: str = "float32",
    python: str | None = None,
) -> Iterator[str]:
    """Runs a server with dummy weights until the block ends.

    Args:
        model: Directory with a configuration and a tokenizer.
        log: File for what the server says.
        arguments: Added to the server's own.
        environment: Added to the server's own.
        dtype: Of its weights.
        python: Interpreter; default: of `served_engine`.

    Yields:
        Its url.

    Raises:
        AssertionError: It ended, or was not ready in 240 s; with the end of the log.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [python or vllm_python()[0], "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(model), "--served-model-name", "policy", "--load-format", "dummy"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", dtype, "--enforce-eager"]
    command += ["--max-model-len", "4096", "--max-num-seqs", "16", *arguments]
    command += ["--logprobs-mode", "processed_logprobs"]
    variables = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            env=os.environ | variables | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(url, process, log)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", timeout=5, trust_env=False).is_success:
                return
        time.sleep(0.5)
    raise AssertionError(f"the server is not ready\n{log.read_text()[-4000:]}")
