"""Seconds per RL step, phase by phase, against TRL's GRPOTrainer.

    python benchmarks/rl_step_vs_trl.py [--steps N] [--output benchmarks/results/rl_step_vs_trl.md]

The same tiny Qwen3 (fp32, the same weights), prompts, completions, reward function, algorithm
(GRPO, one update per step, no KL, no recomputation), optimizer and threads. Each trainer has a
process of its own, so that neither pays for the other's imports; they step in turn (ours, theirs,
ours, ...), so that a noisy machine hits both, and medians are compared. Per step:

1. Ours samples, grades, scores, updates and logs: the body of `training.rl_loop.train`.
2. TRL samples as many tokens, which is timed; its completions are then exchanged for ours, which
   it grades and trains on.

So both train on the same completions, and their gradient norms must agree: that is checked first.
The end-of-sequence token lies outside the model's vocabulary, so all completions have the same
length. TRL makes no pass for old log-probabilities when a batch is used for one update only; ours
always makes it ("scoring"), and its time counts.

Measured twice: with both right and wrong answers in every group, which makes the ratio in the
last line, and with half the groups all wrong, as hard questions have it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import describe

PROMPTS, GROUP_SIZE, NEW_TOKENS = 8, 8, 16
VOCABULARY = 64
LEARNING_RATE, WEIGHT_DECAY, ADVANTAGE_EPS = 1e-3, 0.1, 1e-4
WARM_UP = 3
"""Steps that are compared but not timed: allocators are still cold."""
TOLERANCE = 1e-4
"""Relative difference of gradient norms in the first step: fp32 sums in another order."""
PHASES = ("rollout", "reward", "scoring", "update", "other")
PACKAGES = ("torch", "transformers", "trl", "megatron-core")

REWARD = '''\
def even(response, ground_truth, **context):
    """A coin flip that the text decides, so that groups stay mixed whatever is learned."""
    return float(ground_truth == "even" and sum(map(ord, response)) % 2 == 0)
'''


@dataclass(frozen=True)
class Step:
    """What one trainer reports of a step."""

    seconds: dict[str, float]
    grad_norm: float
    entropy: float

    @property
    def total(self) -> float:
        """Of all phases."""
        return sum(self.seconds.values())


def write_task(directory: Path, mixed: int, half_mixed: int) -> None:
    """Model, tokenizer, reward function, and the prompts of so many steps of either kind."""
    import torch
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    # Without a padding token: transformers gives its embedding no gradient, and it can be sampled.
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
    words = ["<pad>", "<bos>", *"0123456789+-*= ?abcdefghijklmnopqrstuvwxyz:.\n"]
    words += [f"<{number}>" for number in range(len(words), VOCABULARY)] + ["<eos>"]
    model = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    model.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    ).save_pretrained(directory / "model")
    (directory / "reward.py").write_text(REWARD)
    answers = ["even"] * (mixed * PROMPTS) + ["even", "never"] * (half_mixed * PROMPTS // 2)
    rows = [{"prompt": f"{n % 17}+{n % 13}=", "answer": a} for n, a in enumerate(answers)]
    (directory / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def ours(pipe: Connection, directory: Path, steps: int) -> None:
    """Takes one step per message received; answers with the step and its completions."""
    from megatron_resrl.algorithms import get_algorithm
    from megatron_resrl.config import schema
    from megatron_resrl.data.prompts import read_prompts
    from megatron_resrl.diagnostics.records import readable
    from megatron_resrl.diagnostics.standard import standard_observers
    from megatron_resrl.observe.phases import phase
    from megatron_resrl.observe.timers import PhaseTimers
    from megatron_resrl.platform.distributed import process_groups
    from megatron_resrl.rollout.batch import RolloutBatch
    from megatron_resrl.rollout.collect import grade_responses
    from megatron_resrl.rollout.engine import GenerationRequest, SamplingParams
    from megatron_resrl.rollout.worker import open_worker
    from megatron_resrl.token_weighting.uniform import Uniform
    from megatron_resrl.training.journal import Journal
    from megatron_resrl.training.rl_step import StepSettings, rl_step
    from megatron_resrl.training.single_pass import takes_single_pass

    recipe = schema.Recipe(
        output_dir=str(directory / "run"),
        steps=steps,
        model=schema.ModelConfig(str(directory / "model")),
        precision=schema.PrecisionConfig("fp32"),
        optimizer=schema.OptimizerConfig(
            lr=LEARNING_RATE, lr_warmup_steps=0, weight_decay=WEIGHT_DECAY
        ),
        data=schema.DataConfig((str(directory / "train.jsonl"),), apply_chat_template=False),
        reward=schema.RewardConfig(f"{directory / 'reward.py'}:even", workers=1),
        algorithm=schema.AlgorithmConfig("grpo", micro_batch_size=PROMPTS * GROUP_SIZE),
        logging=schema.LoggingConfig(tensorboard=False, progress_bar=False),
    )
    algorithm = get_algorithm("grpo", eps=ADVANTAGE_EPS)
    timers = PhaseTimers()
    observers = standard_observers(recipe.resrl, temperature=1.0, seed=recipe.seed, timers=timers)
    journal = {"headline": "reward/mean", "resume_step": None}
    with (
        process_groups(recipe.parallel, recipe.seed),
        open_worker(recipe, trainable=True) as worker,
        Journal(directory / "run", recipe.logging, steps, **journal) as journal,
    ):
        prompts, _ = read_prompts(recipe.data.train_files, recipe.data, worker.tokenizer)
        weighting = Uniform()
        single_pass = takes_single_pass(weighting, recipe)
        settings = StepSettings.from_recipe(recipe, single_pass=single_pass)
        sampling = SamplingParams(NEW_TOKENS, worker.stop_token_ids, n=GROUP_SIZE)
        for step in range(1, steps + 1):
            pipe.recv()
            timers.collect()
            batch = prompts[(step - 1) * PROMPTS : step * PROMPTS]
            with phase(timers, "rollout"):
                token_ids = [prompt.token_ids for prompt in batch]
                responses = worker.engine.generate(
                    GenerationRequest(token_ids, sampling, seed=(recipe.seed, step))
                )
            with phase(timers, "reward"):
                grader = worker.graders.of(recipe.reward)
                samples = grade_responses(batch, responses, grader, worker.tokenizer, recipe.reward)
            metrics = rl_step(
                worker.policy,
                algorithm,
                weighting,
                RolloutBatch.from_samples(samples),
                settings,
                step,
                timers,
                observers,
            ).metrics
            worker.engine.update_weights(step)
            journal.finish_step(step, metrics, [readable(each) for each in samples[:2]])
            completions = [list(sample.response.token_ids) for sample in samples]
            taken = Step(timers.collect(), metrics["grad_norm"], metrics["entropy"])
            pipe.send((taken, completions))


def theirs(pipe: Connection, directory: Path, steps: int) -> None:
    """Takes one step per message received, which holds the completions to train on."""
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from megatron_resrl.observe.timers import PhaseTimers
    from megatron_resrl.rewards.registry import get_reward

    timers = PhaseTimers()
    update = contextlib.ExitStack()
    grade = get_reward(f"{directory / 'reward.py'}:even")

    def even(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        return [grade(text, truth) for text, truth in zip(completions, answer, strict=True)]

    class Timed(GRPOTrainer):
        """Times what TRL does, and exchanges the completions once they are sampled."""

        def _generate(self, prompts: list[str]) -> Any:
            with timers.phase("rollout"):
                return super()._generate(prompts)

        def _generate_single_turn(self, *args: Any) -> Any:
            sampled, log_probs = super()._generate_single_turn(*args)
            if {len(token_ids) for token_ids in sampled} != {NEW_TOKENS}:
                raise RuntimeError(f"TRL sampled completions of other than {NEW_TOKENS} tokens")
            return self.completions, log_probs

        def _calculate_rewards(self, *args: Any) -> torch.Tensor:
            with timers.phase("reward"):
                return super()._calculate_rewards(*args)

        def _compute_loss(self, *args: Any) -> torch.Tensor:
            update.enter_context(timers.phase("update"))
            return super()._compute_loss(*args)

    class Turns(TrainerCallback):
        """Ends the phase and the step, and waits for the next turn."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            update.close()

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if "grad_norm" in logs:
                pipe.send(Step(timers.collect(), logs["grad_norm"], logs["entropy"]))
                self.wait()

        def wait(self) -> None:
            trainer.completions = pipe.recv()
            timers.collect()

    turns = Turns()
    trainer = Timed(
        model=AutoModelForCausalLM.from_pretrained(directory / "model", dtype=torch.float32),
        reward_funcs=even,
        args=GRPOConfig(
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
            gradient_checkpointing=False,  # TRL's default is to recompute activations.
            logging_steps=1,
            disable_tqdm=True,
            report_to=[],
            save_strategy="no",
        ),
        train_dataset=load_dataset("json", data_files=str(directory / "train.jsonl"))["train"],
        processing_class=AutoTokenizer.from_pretrained(directory / "model"),
        callbacks=[turns],
    )
    trainer.remove_callback(PrinterCallback)
    turns.wait()
    trainer.train()


def step_in_turn(directory: Path, steps: int) -> list[tuple[Step, Step]]:
    """Both trainers' steps, ours first."""
    context = multiprocessing.get_context("spawn")
    ends, processes = [], []
    for trainer in (ours, theirs):
        end, far_end = context.Pipe()
        process = context.Process(target=trainer, args=(far_end, directory, steps))
        process.start()
        far_end.close()  # So that waiting for a trainer that died raises EOFError.
        ends.append(end)
        processes.append(process)
    records = []
    for _ in range(steps):
        ends[0].send(None)
        mine, completions = ends[0].recv()
        ends[1].send(completions)
        records.append((mine, ends[1].recv()))
    ends[1].send(None)
    for process in processes:
        process.join()
    return records


def check(records: Sequence[tuple[Step, Step]]) -> str:
    """Compares what both trainers computed; ends the program if it is not the same."""
    differences = [abs(mine.grad_norm / other.grad_norm - 1) for mine, other in records]
    mine, other = records[0]
    said = (
        f"Gradient norm of the first step: {mine.grad_norm:.7f} (ours), {other.grad_norm:.7f} "
        f"(TRL), relative difference {differences[0]:.1e}, allowed {TOLERANCE:.0e}; entropy "
        f"{mine.entropy:.6f} and {other.entropy:.6f}. Largest relative difference of the gradient "
        f"norms in all {len(records)} steps, each trainer on its own weights: "
        f"{max(differences):.1e}."
    )
    if differences[0] > TOLERANCE:
        raise SystemExit(f"the trainers do not compute the same. {said}")
    return said


def table(records: Sequence[tuple[Step, Step]]) -> tuple[list[str], float]:
    """Median milliseconds per phase, and the ratio of the median steps."""
    lines = ["| ms | ours | TRL |", "|---|---|---|"]
    for name in PHASES:
        medians = [
            1000 * statistics.median(step.seconds.get(name, 0.0) for step in steps)
            for steps in zip(*records, strict=True)
        ]
        lines.append(f"| {name} | {medians[0]:.1f} | {medians[1]:.1f} |")
    mine, other = (
        statistics.median(step.total for step in steps) for steps in zip(*records, strict=True)
    )
    lines.append(f"| **step** | **{1000 * mine:.1f}** | **{1000 * other:.1f}** |")
    return lines, mine / other


def main() -> None:
    """Lets both trainers step in turn, and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30, help="timed steps of each kind")
    parser.add_argument("--output", type=Path, help="also write the report to this file")
    settings = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    where = describe(PACKAGES, threads=1)
    mixed = WARM_UP + settings.steps
    with tempfile.TemporaryDirectory() as directory:
        write_task(Path(directory), mixed, settings.steps)
        records = step_in_turn(Path(directory), mixed + settings.steps)
    agreement = check(records)
    main_table, ratio = table(records[WARM_UP:mixed])
    half_table, half_ratio = table(records[mixed:])
    text = "\n".join(
        [
            "# One RL step against TRL's GRPOTrainer",
            "",
            f"`python benchmarks/rl_step_vs_trl.py --steps {settings.steps}`, {where}. Medians of "
            f"{settings.steps} steps in turn; {PROMPTS} prompts x {GROUP_SIZE} completions x "
            f"{NEW_TOKENS} tokens, Qwen3 with 0.6 M parameters, fp32.",
            "",
            agreement,
            "",
            "Right and wrong answers in every group:",
            "",
            *main_table,
            "",
            f"Half of the groups all wrong (step ratio {half_ratio:.2f}):",
            "",
            *half_table,
            "",
            f"step_ratio={ratio:.2f}",
        ]
    )
    print(text)
    if settings.output:
        settings.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
