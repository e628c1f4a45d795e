"""Every rank: sends a model's weights to a server in one layout; rank 0 prints what came of it.

Arguments: what to do (`send`, `changes`, `in_flight`, `corrupt`, `without_reset`), url of the
server, other urls joined by commas or `-`, model, version, bytes of a bucket, number format, layout
as JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from servers_of import needed_model

from megatron_resrl.config import schema
from megatron_resrl.errors import RunError
from megatron_resrl.platform.distributed import gather_objects, initialize
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.serving.pooled_server import token_count
from megatron_resrl.rollout.weight_sync.buckets import Bucket
from megatron_resrl.rollout.weight_sync.control import ServerControl
from megatron_resrl.rollout.weight_sync.last_sent import LastSent
from megatron_resrl.rollout.weight_sync.sender import WeightSender, build_sender
from megatron_resrl.rollout.weight_sync.stream import ServedWeights
from megatron_resrl.rollout.weight_sync.verify import verify_weights
from megatron_resrl.rollout.worker import build_policy

LONG, BEGUN = 4000, 20
"""Tokens of a response that is cut, and those that are there, at least, before it is."""
CORRUPTED = "model.layers.1.mlp.down_proj.weight"


def in_flight(sender: WeightSender, server: ServerControl, version: int) -> dict[str, Any]:
    """Sends while the server is in the middle of a response."""
    sampling = {"max_tokens": LONG, "temperature": 1.0, "ignore_eos": True, "logprobs": 0}
    body = {"token_ids": [3, 4, 5], "sampling_params": sampling}
    before = tokens_made(server)
    with ThreadPoolExecutor() as client:
        asked = client.submit(server.post, "/inference/v1/generate", body, timeout_s=200)
        while tokens_made(server) < before + BEGUN and not asked.done():
            time.sleep(0.05)
        report = sender.send([server], version)
        (answer,) = asked.result()["choices"]
    return {
        "failed": report.failed,
        "lengths": [len(answer["token_ids"]), len(answer["logprobs"]["content"])],
        "versions": [
            (span["version"], span["start"], span["end"]) for span in answer["weight_versions"]
        ],
    }


def tokens_made(server: ServerControl) -> float:
    """Read and made since the server started."""
    return token_count(httpx.get(f"{server.url}/metrics", trust_env=False).text)


def verify(policy: Policy, recipe: schema.Recipe, server: ServerControl, version: int) -> None:
    """With the lengths and the number format of the recipe."""
    verify_weights(
        policy,
        ServedWeights(policy),
        [server],
        version,
        max_length=recipe.data.max_prompt_length + recipe.rollout.max_response_length,
        params_dtype=recipe.precision.params_dtype,
    )


def changes(
    sender: WeightSender, policy: Policy, servers: list[ServerControl]
) -> list[dict[str, Any]]:
    """Sends all, what has changed, all to servers that have given up their bytes, and changes."""
    reports = [sender.send(servers, 1)]
    perturb(policy)
    reports.append(sender.send(servers, 2))
    for server in servers:
        server.post("/shutdown_weight_transfer_engine")
    for version in (3, 4):
        perturb(policy)
        reports.append(sender.send(servers, version))
    return [asdict(report) for report in reports]


@torch.no_grad()
def perturb(policy: Policy) -> None:
    """Changes one value in 64 of every parameter, the same ones on all ranks that share it."""
    for module in policy.modules:
        for parameter in module.parameters():
            parameter.view(-1)[::64] *= 1.01


def load(server: ServerControl, bucket: Bucket, other_names: dict[str, str], version: str) -> None:
    """Loads one bucket and does nothing else that belongs to a sync."""
    file = LastSent(other_names, keep=False).next_file(0, bucket, in_full=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bucket.safetensors"
        save_file(file.tensors, path, metadata=file.notes)
        server.post("/start_weight_update")
        server.post("/update_weights", {"update_info": {"path": str(path)}})
        server.post("/finish_weight_update", {"weight_version": version})


def corrupt(policy: Policy, recipe: schema.Recipe, server: ServerControl) -> str:
    """Changes the last bits of one element on the server, through the same API, and verifies."""
    (tensor,) = (t for name, t in ServedWeights(policy) if name == CORRUPTED)
    changed = tensor.clone()
    changed[-1, -1] = torch.nextafter(changed[-1, -1], torch.tensor(9.0))
    load(server, [(CORRUPTED, changed)], {}, "corrupt")
    try:
        verify(policy, recipe, server, 3)
    except RunError as error:
        return str(error)
    return ""


def stale_cache(policy: Policy, recipe: schema.Recipe, server: ServerControl) -> str:
    """Loads other weights and leaves the prefix cache as it was; then verifies."""
    weights = ServedWeights(policy)
    load(server, list(weights.once()), weights.other_names, "stale")
    try:
        verify(policy, recipe, server, 4)
    except RunError as error:
        return str(error)
    finally:
        server.post("/reset_prefix_cache")
    return ""


def main(
    task: str,
    url: str,
    others: str,
    model: str,
    version: str,
    size: str,
    precision: str,
    layout: str,
):
    recipe = schema.Recipe(
        model=schema.ModelConfig(path=model),
        precision=schema.PrecisionConfig(precision),
        parallel=schema.ParallelConfig(**json.loads(layout)),
        data=schema.DataConfig(max_prompt_length=310),
        rollout=schema.RolloutConfig(
            engine="vllm", max_response_length=200, verify_weights=task in ("send", "changes")
        ),
        vllm=schema.VllmConfig(bucket_bytes=int(size), weight_transfer="file"),
    )
    initialize(recipe.parallel, 0)
    policy = build_policy(recipe, trainable=False)
    sender = build_sender(policy, needed_model(recipe), recipe.vllm, recipe.rollout)
    server = ServerControl(url)
    servers = [server, *(ServerControl(other) for other in others.split(",") if other != "-")]
    found: Any
    if task == "send":
        report = sender.send(servers if dist.get_rank() == 0 else [], int(version))
        found = asdict(report)
        assert len(set(gather_objects(report))) == 1
    elif task == "changes":
        found = changes(sender, policy, servers if dist.get_rank() == 0 else [])
    elif task == "in_flight":
        found = in_flight(sender, server, int(version))
    elif task == "corrupt":
        sender.send([server], int(version))
        found = corrupt(policy, recipe, server)
    else:
        found = stale_cache(policy, recipe, server)
    sender.close()
    if dist.get_rank() == 0:
        print("RESULT " + json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
