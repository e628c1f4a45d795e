"""The trainers of `rl_step_vs_trl.py`, each in a process of its own, and what they train on."""

from __future__ import annotations

import contextlib
import json
import tempfile
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PROMPTS, GROUP_SIZE = 8, 8
VOCABULARY = 64
LEARNING_RATE, WEIGHT_DECAY, ADVANTAGE_EPS = 1e-3, 0.1, 1e-4

REWARD = '''\
def even(response, ground_truth, **context):
    """A coin flip that the text decides, so that groups stay mixed whatever is learned."""
    return float(ground_truth == "even" and sum(map(ord, response)) % 2 == 0)
'''


@dataclass(frozen=True)
class Case:
    """What is sampled and trained on."""

    new_tokens: int
    """Of every completion."""
    prompt_tokens: int | None = None
    """Of every prompt; None: four or five."""
    trl_batch: int = PROMPTS * GROUP_SIZE
    """Completions of a batch of TRL, which sums gradients up to a step."""

    def prompt(self, number: int) -> str:
        """A question, a token per character."""
        question = f"{number % 17}+{number % 13}="
        return question if self.prompt_tokens is None else question.rjust(self.prompt_tokens, "?")


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


def write_task(directory: Path, case: Case, mixed: int, half_mixed: int) -> None:
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
    rows = [{"prompt": case.prompt(n), "answer": a} for n, a in enumerate(answers)]
    (directory / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def ours(
    pipe: Connection, directory: Path, case: Case, steps: int, settings: dict[str, str]
) -> None:
    """Takes one step per message received; answers with the step and its completions.

    `settings`: of the section `algorithm`.
    """
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
    from megatron_resrl.token_weighting.fixed import Uniform
    from megatron_resrl.training.journal import Journal
    from megatron_resrl.training.rl_step import StepSettings, rl_step
    from megatron_resrl.training.single_pass import takes_single_pass

    run = Path(tempfile.mkdtemp(dir=directory))
    recipe = schema.Recipe(
        output_dir=str(run),
        steps=steps,
        model=schema.ModelConfig(str(directory / "model")),
        precision=schema.PrecisionConfig("fp32"),
        optimizer=schema.OptimizerConfig(
            lr=LEARNING_RATE, lr_warmup_steps=0, weight_decay=WEIGHT_DECAY
        ),
        data=schema.DataConfig((str(directory / "train.jsonl"),), apply_chat_template=False),
        reward=schema.RewardConfig(f"{directory / 'reward.py'}:even", workers=1),
        algorithm=schema.AlgorithmConfig("grpo", micro_batch_size=PROMPTS * GROUP_SIZE, **settings),
        logging=schema.LoggingConfig(tensorboard=False, progress_bar=False),
    )
    algorithm = get_algorithm("grpo", eps=ADVANTAGE_EPS)
    timers = PhaseTimers()
    observers = standard_observers(recipe.resrl, temperature=1.0, seed=recipe.seed, timers=timers)
    journal = {"headline": "reward/mean", "resume_step": None}
    with (
        process_groups(recipe.parallel, recipe.seed),
        open_worker(recipe, trainable=True) as worker,
        Journal(run, recipe.logging, steps, **journal) as journal,
    ):
        prompts, _ = read_prompts(recipe.data.train_files, recipe.data, worker.tokenizer)
        weighting = Uniform()
        single_pass = takes_single_pass(weighting, recipe)
        of_step = StepSettings.from_recipe(recipe, single_pass=single_pass)
        sampling = SamplingParams(case.new_tokens, worker.stop_token_ids, n=GROUP_SIZE)
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
                of_step,
                step,
                timers,
                observers,
            ).metrics
            worker.engine.update_weights(step)
            journal.finish_step(step, metrics, [readable(each) for each in samples[:2]])
            completions = [list(sample.response.token_ids) for sample in samples]
            taken = Step(timers.collect(), metrics["grad_norm"], metrics["entropy"])
            pipe.send((taken, completions))


def theirs(pipe: Connection, directory: Path, case: Case, steps: int) -> None:
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

        updating = False

        def _generate(self, prompts: list[str]) -> Any:
            with timers.phase("rollout"):
                return super()._generate(prompts)

        def _generate_single_turn(self, *args: Any) -> Any:
            sampled, log_probs = super()._generate_single_turn(*args)
            if {len(token_ids) for token_ids in sampled} != {case.new_tokens}:
                raise RuntimeError(f"TRL's completions have other than {case.new_tokens} tokens")
            return self.completions, log_probs

        def _calculate_rewards(self, *args: Any) -> torch.Tensor:
            with timers.phase("reward"):
                return super()._calculate_rewards(*args)

        def _compute_loss(self, *args: Any) -> torch.Tensor:
            if not self.updating:  # The first batch of the step.
                self.updating = True
                update.enter_context(timers.phase("update"))
            return super()._compute_loss(*args)

    class Turns(TrainerCallback):
        """Ends the phase and the step, and waits for the next turn."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            update.close()
            trainer.updating = False

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
            per_device_train_batch_size=case.trl_batch,
            gradient_accumulation_steps=PROMPTS * GROUP_SIZE // case.trl_batch,
            num_generations=GROUP_SIZE,
            max_completion_length=case.new_tokens,
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
