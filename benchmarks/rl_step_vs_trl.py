"""Seconds per RL step, phase by phase, against TRL's GRPOTrainer.

    python benchmarks/rl_step_vs_trl.py [--steps N] [--output benchmarks/results/rl_step_vs_trl.md]

The same tiny Qwen3 (fp32, the same weights), prompts, completions, reward function, algorithm
(GRPO, one update per step, no KL, no recomputation), optimizer and threads. Each trainer has a
process of its own, so that neither sees the other's imports; they step in turn, ours, theirs,
ours, ..., so that a noisy machine hits both, and medians are compared. Per step:

1. Ours samples, grades, scores, updates and logs: the body of `training.rl_loop.train`.
2. TRL samples as many tokens, which is timed; its completions are then exchanged for ours, which
   it grades and trains on.

Thus both train on the same completions and their gradient norms must agree, which is checked
first. The end-of-sequence token lies outside the model's vocabulary: all completions have the
same length. TRL skips the pass for old log-probs when a batch is used for one update only; ours
always makes it ("scoring"), and it is part of the time reported.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

PROMPTS, GROUP_SIZE, NEW_TOKENS = 8, 8, 16
VOCABULARY = 64
LEARNING_RATE, WEIGHT_DECAY, ADVANTAGE_EPS = 1e-3, 0.1, 1e-4
WARM_UP = 3
"""Steps that are checked but not timed: allocators and kernels are still cold."""
TOLERANCE = 1e-4
"""Relative difference of the first step's gradient norms: fp32 sums in another order."""
PHASES = ("rollout", "reward", "scoring", "update", "other")

REWARD = '''\
def even(response, ground_truth, **context):
    """A coin flip that the text decides: half of each group is right, whatever was learned."""
    return float(sum(map(ord, response)) % 2 == 0)
'''


def write_task(directory: Path, questions: int) -> None:
    """Model, tokenizer, prompts of four to six tokens, and the reward function."""
    import torch
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=VOCABULARY,
    )
    Qwen3ForCausalLM(config).save_pretrained(directory / "model")
    characters = "0123456789+-*= ?abcdefghijklmnopqrstuvwxyz:.\n"
    words = ["<pad>", "<bos>", *characters]
    words += [f"<{number}>" for number in range(len(words), VOCABULARY)] + ["<eos>"]
    model = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    model.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    ).save_pretrained(directory / "model")
    (directory / "reward.py").write_text(REWARD)
    rows = [{"prompt": f"{n % 17}+{n % 13}=", "answer": "0"} for n in range(questions)]
    (directory / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def ours(pipe: Connection, directory: Path, steps: int) -> None:
    """Takes one step per message received; answers with its times, numbers and completions."""
    from megatron_resrl.algorithms import get_algorithm
    from megatron_resrl.config import schema
    from megatron_resrl.observe.timers import PhaseTimers
    from megatron_resrl.rollout.actor import open_actor, read_prompts
    from megatron_resrl.rollout.collect import grade_responses
    from megatron_resrl.rollout.engine import SamplingParams
    from megatron_resrl.training.journal import Journal
    from megatron_resrl.training.phases import phase
    from megatron_resrl.training.rl_step import rl_step

    samples_per_step = PROMPTS * GROUP_SIZE
    recipe = schema.Recipe(
        output_dir=str(directory / "run"),
        steps=steps,
        model=schema.ModelConfig(str(directory / "model")),
        precision=schema.PrecisionConfig("fp32"),
        optimizer=schema.OptimizerConfig(
            lr=LEARNING_RATE, lr_warmup_steps=0, weight_decay=WEIGHT_DECAY
        ),
        data=schema.DataConfig((str(directory / "train.jsonl"),), apply_chat_template=False),
        rollout=schema.RolloutConfig(
            prompts_per_step=PROMPTS, group_size=GROUP_SIZE, max_response_length=NEW_TOKENS
        ),
        reward=schema.RewardConfig(f"{directory / 'reward.py'}:even", workers=1),
        algorithm=schema.AlgorithmConfig("grpo", micro_batch_size=samples_per_step),
        logging=schema.LoggingConfig(tensorboard=False, progress_bar=False),
    )
    algorithm = get_algorithm("grpo", eps=ADVANTAGE_EPS)
    timers = PhaseTimers()
    with open_actor(recipe, trainable=True) as actor, Journal(recipe, resume_step=None) as journal:
        prompts, _ = read_prompts(recipe.data.train_files, recipe.data, actor.tokenizer)
        sampling = SamplingParams(NEW_TOKENS, actor.stop_token_ids, n=GROUP_SIZE)
        for step in range(1, steps + 1):
            pipe.recv()
            timers.collect()
            batch = prompts[(step - 1) * PROMPTS : step * PROMPTS]
            with phase(timers, "rollout"):
                token_ids = [prompt.token_ids for prompt in batch]
                responses = actor.engine.generate(token_ids, sampling, seed=(recipe.seed, step))
            with phase(timers, "reward"):
                samples = grade_responses(
                    batch, responses, actor.grader, actor.tokenizer, recipe.reward
                )
            outcome = rl_step(actor.policy, algorithm, samples, recipe, step, timers)
            actor.engine.update_weights()
            journal.log(step, outcome.metrics, samples)
            completions = [list(sample.response.token_ids) for sample in samples]
            pipe.send((timers.collect(), outcome.metrics, completions))


def theirs(pipe: Connection, directory: Path, steps: int) -> None:
    """Takes one step per message received, which holds the completions to train on."""
    import torch
    from datasets import load_dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        PreTrainedTokenizerBase,
        PrinterCallback,
        TrainerCallback,
    )
    from trl import GRPOConfig, GRPOTrainer

    from megatron_resrl.observe.timers import PhaseTimers
    from megatron_resrl.rewards.registry import get_reward

    timers = PhaseTimers()
    update = contextlib.ExitStack()
    grade = get_reward(f"{directory / 'reward.py'}:even")

    def even(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        return [grade(text, truth) for text, truth in zip(completions, answer, strict=True)]

    class Timed(GRPOTrainer):
        def _generate(self, prompts: list[str]) -> Any:
            with timers.phase("rollout"):
                return super()._generate(prompts)

        def _generate_single_turn(self, *args: Any) -> Any:
            sampled, log_probs = super()._generate_single_turn(*args)
            if any(len(token_ids) != NEW_TOKENS for token_ids in sampled):
                raise RuntimeError("a completion ended early")
            return self.completions, log_probs

        def _calculate_rewards(self, *args: Any) -> torch.Tensor:
            with timers.phase("reward"):
                return super()._calculate_rewards(*args)

        def _compute_loss(self, *args: Any) -> torch.Tensor:
            update.enter_context(timers.phase("update"))
            return super()._compute_loss(*args)

    class Steps(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            update.close()

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if "grad_norm" in logs:
                pipe.send((timers.collect(), logs))
                self.wait()

        def wait(self) -> None:
            trainer.completions = pipe.recv()
            timers.collect()

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory / "model")
    arguments = GRPOConfig(
        output_dir=str(directory / "trl"),
        max_steps=steps,
        per_device_train_batch_size=PROMPTS * GROUP_SIZE,
        num_generations=GROUP_SIZE,
        max_completion_length=NEW_TOKENS,
        shuffle_dataset=False,
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        lr_scheduler_type="constant",
        loss_type="grpo",
        beta=0.0,
        bf16=False,
        use_cpu=True,
        # TRL's default recomputes activations; ours does not.
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        logging_steps=1,
        disable_tqdm=True,
        report_to=[],
        save_strategy="no",
    )
    callback = Steps()
    trainer = Timed(
        model=AutoModelForCausalLM.from_pretrained(directory / "model", dtype=torch.float32),
        reward_funcs=even,
        args=arguments,
        train_dataset=load_dataset("json", data_files=str(directory / "train.jsonl"))["train"],
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer.remove_callback(PrinterCallback)
    callback.wait()
    trainer.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30, help="timed steps of each trainer")
    parser.add_argument("--output", type=Path, help="also write the report to this file")
    settings = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as directory:
        records = interleave(Path(directory), settings.steps + WARM_UP)
    for mine, other in records:
        print(mine, other)


def interleave(directory: Path, steps: int) -> list[tuple]:
    write_task(directory, steps * PROMPTS)
    context = multiprocessing.get_context("spawn")
    (our_end, our_pipe), (their_end, their_pipe) = context.Pipe(), context.Pipe()
    processes = [
        context.Process(target=ours, args=(our_pipe, directory, steps)),
        context.Process(target=theirs, args=(their_pipe, directory, steps)),
    ]
    for process in processes:
        process.start()
    our_pipe.close()
    their_pipe.close()
    records = []
    for _ in range(steps):
        our_end.send(None)
        times, metrics, completions = our_end.recv()
        their_end.send(completions)
        record = their_end.recv()
        records.append(
            (
                (times, metrics["grad_norm"], metrics["loss"], metrics["entropy"]),
                (record[0], record[1]["grad_norm"], record[1]["loss"], record[1]["entropy"]),
            )
        )
    their_end.send([])
    return records


if __name__ == "__main__":
    main()
