"""Checkpoints that cannot be written or do not fit, on two data-parallel ranks.

Arguments: folder of the models, working folder. Rank 0 prints what every rank saw.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import tiny_checkpoint as tiny
import torch
import torch.distributed as dist

from megatron_resrl.checkpoint import (
    CheckpointError,
    CheckpointSaver,
    Retention,
    TrainerState,
    checkpoint_to_resume,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
    saver,
)
from megatron_resrl.config.schema import Recipe
from megatron_resrl.platform.distributed import gather_objects, initialize
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.worker import build_policy

PLAIN = {"use_distributed_optimizer": False}
STATE = TrainerState(2, {})


def build(recipe: Recipe, *, trainable: bool = True) -> Policy:
    initialize(recipe.parallel, 0)
    return build_policy(recipe, trainable=trainable)


def refusal(action: Callable[[], Any]) -> str:
    """What `action` raises, as text."""
    try:
        action()
    except (CheckpointError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


@contextlib.contextmanager
def warnings() -> Iterator[list[str]]:
    """What the product warns of in the block."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("megatron_resrl").addHandler(handler)
    try:
        yield messages
    finally:
        logging.getLogger("megatron_resrl").removeHandler(handler)


@contextlib.contextmanager
def full_disk_of_rank_one() -> Iterator[None]:
    """Rank 1 cannot write files beyond 20 KB."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    if dist.get_rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, unlimited[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)


def same_weights(first: Policy, second: Policy) -> bool:
    pairs = zip(first.modules[0].parameters(), second.modules[0].parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def misfits(recipe: Recipe, models: Path, work: Path) -> dict[str, Any]:
    """Loads a good checkpoint into policies it does not fit, and into one without optimizer."""
    policy = build(recipe)
    tiny.take_step(policy, 1)
    path = save_checkpoint(work / "good", policy, STATE, keep_last=1)
    wider = replace(recipe, model=replace(recipe.model, path=str(models / "wider_qwen3")))
    plain = replace(recipe, parallel=replace(recipe.parallel, **PLAIN))
    bf16 = replace(recipe, precision=replace(recipe.precision, params_dtype="bf16"))
    scorer = build(recipe, trainable=False)
    before = same_weights(policy, scorer)
    load_checkpoint(path, scorer)
    return {
        "weights only": [before, same_weights(policy, scorer)],
        "saving it": refusal(lambda: save_checkpoint(work / "x", scorer, STATE, keep_last=1)),
        "other model": refusal(lambda: load_checkpoint(path, build(wider))),
        "other optimizer": refusal(lambda: load_checkpoint(path, build(plain))),
        "other precision": refusal(lambda: load_checkpoint(path, build(bf16))),
        "missing": refusal(lambda: load_checkpoint(path.with_name("step_000077"), policy)),
        "not JSON": refusal(
            lambda: save_checkpoint(
                work / "never", policy, TrainerState(3, {}, {"x": {1, 2}}), keep_last=1
            )
        ),
        "written all the same": (work / "never").exists(),
    }


def full_disk(recipe: Recipe, work: Path) -> dict[str, Any]:
    """The disk is full during the second save."""
    policy = build(recipe)
    tiny.take_step(policy, 1)
    first = save_checkpoint(work / "full", policy, STATE, keep_last=1)
    state = TrainerState(3, {})
    with full_disk_of_rank_one():
        said = refusal(lambda: save_checkpoint(work / "full", policy, state, keep_last=1))
    still_latest = latest_checkpoint(work / "full") == first
    second = save_checkpoint(work / "full", policy, state, keep_last=1)
    return {
        "full disk": said,
        "still latest": still_latest,
        "then": latest_checkpoint(work / "full") == second,
    }


def background_saver(
    folder: Path, policy: Policy, on_saved: Callable[[int], Any]
) -> CheckpointSaver:
    timeout = datetime.timedelta(minutes=1)
    return CheckpointSaver(
        folder, policy, Retention(3), background=True, timeout=timeout, on_saved=on_saved
    )


def background(recipe: Recipe, work: Path) -> dict[str, Any]:
    """The same while training goes on, and how a run then resumes."""
    policy = build(recipe)
    saved: list[int] = []
    polled = threading.Event()

    def on_saved(step: int) -> None:
        if step == 4:
            polled.wait(30)
        saved.append(step)

    own = background_saver(work / "background", policy, on_saved)
    own.save(TrainerState(1, {}))
    tiny.take_step(policy, 1)
    own.wait()
    with full_disk_of_rank_one():
        own.save(TrainerState(2, {}))
        said = refusal(own.wait)
    with own:
        own.save(TrainerState(3, {}))
        own.save(TrainerState(4, {}))
        times = [own.times()]
        own.poll()
        times.append(own.times())
        polled.set()
        while not (written := own.times()):
            own.poll()
    return {
        "full disk in the background": said,
        "saved": saved,
        "times": [sorted(each) for each in (*times, written)],
        "resuming": resuming(work / "background"),
    }


def ended_by_an_error(recipe: Recipe, work: Path) -> dict[str, Any]:
    """A run fails while its checkpoint is written in the background, in several ways."""
    policy = build(recipe)
    released = threading.Event()

    def run(name: str, on_saved: Callable[[int], Any], *, saves: bool = True) -> list[Any]:
        """The error that ends the run, what was warned of, and what is left of the save."""
        try:
            with warnings() as said, background_saver(work / name, policy, on_saved) as own:
                if saves:
                    own.save(STATE)
                raise RuntimeError("no more questions")
        except RuntimeError as error:
            threads = [thread.name for thread in threading.enumerate()]
            written = latest_checkpoint(work / name)
            return [str(error), said, "checkpoint writer" in threads, written and written.name]

    found = {
        "nothing to save": run("idle", time.sleep, saves=False),
        "saved": run("ended", lambda step: time.sleep(0.5)),
    }
    with full_disk_of_rank_one():
        found["disk full"] = run("ended on a full disk", time.sleep)
    saver._LAST_CHANCE_S = 5.5  # Time enough for what is written before it hangs.
    found["endless"] = run("ended in an endless save", lambda step: released.wait())
    released.set()
    return {"ended by an error": found}


def resuming(output_dir: Path) -> list[str]:
    """What a run resumes from as one checkpoint after the other is damaged."""

    def resumed(*, verify_checksums: bool = True) -> str:
        return checkpoint_to_resume(output_dir, verify_checksums=verify_checksums).name

    seen = [resumed()]
    for damage in (flip_bit, truncate, truncate):
        damage(output_dir / "checkpoints" / seen[-1])
        if len(seen) == 1:
            seen.append(resumed(verify_checksums=False))
        seen.append(refusal(resumed) if len(seen) == 4 else resumed())
    return seen


def flip_bit(checkpoint: Path) -> None:
    if dist.get_rank() == 0:
        shard = checkpoint / "__1_0.distcp"
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    dist.barrier()


def truncate(checkpoint: Path) -> None:
    if dist.get_rank() == 0:
        os.truncate(checkpoint / "__0_0.distcp", 1000)
    dist.barrier()


def changed_settings(recipe: Recipe, work: Path) -> dict[str, Any]:
    """Resumes with another learning rate and weight decay."""
    policy = build(recipe)
    for step in (1, 2):
        tiny.take_step(policy, step)
    path = save_checkpoint(work / "settings", policy, STATE, keep_last=1)
    optimizer = replace(recipe.optimizer, lr=3e-2, weight_decay=0.5)
    changed = build(replace(recipe, optimizer=optimizer))
    with warnings() as messages:
        load_checkpoint(path, changed)
    result = tiny.take_step(changed, 3)
    decays = {group["weight_decay"] for group in changed.optimizer.param_groups}
    return {
        "learning rate": result.learning_rate,
        "weight decays": sorted(decays),
        "warnings": messages,
    }


def before_the_first_step(recipe: Recipe, work: Path) -> list[bool]:
    """Saves an untouched policy; is the first step of a resumed one the same?"""
    equal = []
    for number, parallel in enumerate((recipe.parallel, replace(recipe.parallel, **PLAIN))):
        own = replace(recipe, parallel=parallel)
        policy = build(own)
        path = save_checkpoint(work / f"zero{number}", policy, TrainerState(0, {}), keep_last=1)
        tiny.take_step(policy, 1)
        fresh = build(own)
        load_checkpoint(path, fresh)
        tiny.take_step(fresh, 1)
        equal.append(same_weights(policy, fresh))
    return equal


def main(models: Path, work: Path) -> None:
    recipe = tiny.recipe(models / "qwen3", {})
    found = {
        **misfits(recipe, models, work),
        **full_disk(recipe, work),
        **background(recipe, work),
        **ended_by_an_error(recipe, work),
        **changed_settings(recipe, work),
        "before the first step": before_the_first_step(recipe, work),
    }
    everyone = gather_objects(found)
    if dist.get_rank() == 0:
        print("RESULT " + json.dumps(everyone))


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main(*map(Path, sys.argv[1:]))
