"""What FP8's rounding changes in ResRL, emulated on a CPU: log-probs, weights, gradients, curves.

    tools/install.sh te-on-cpu
    python benchmarks/fp8_emulated.py [--model outputs/quickstart/model] [--output FILE]

Transformer Engine's own Python runs with its compiled functions answered in torch: numbers are
rounded to e4m3 and e5m2 with the scales that each recipe asks for, and products are summed in fp32.
Not measured are NVIDIA's kernels, which sum in another order and partly with fewer bits, and
speed. Every format has the same layers.

* One step on the same rollouts, which the fp32 policy samples: of the quickstart's model, and of a
  small random Llama that is trained here first. Each format scores, weighs and updates once.
* 20 steps of the small Llama from the start: each format samples its own rollouts, by seed; and
  each format trains on those of fp32 with the first seed.

`--parts` measures some of it; `--numbers FILE` keeps the numbers of all parts measured so far.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fp8_report import FORMATS, PARTS, QUANTILES, RECIPES, TRAINED_STEPS, report

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Task:
    """What is trained, and how answers are graded."""

    model: Path
    questions: list[dict[str, str]]
    """`prompt` and `answer`."""
    grade: Callable[[str, str], float]
    """Takes response and answer."""
    tokens: int
    """Of the longest response."""
    lr: float
    chat: bool


def number_of(response: str, answer: str) -> float:
    """Whether the last number is the answer."""
    found = re.findall(r"-?\d+", response)
    return float(bool(found) and found[-1] == answer)


def even(response: str, answer: str) -> float:
    """Whether the first word is an even number."""
    words = response.split()
    return float(bool(words) and words[0].isdigit() and int(words[0]) % 2 == 0)


def settings_of(task: Task, number_format: str, lr: float) -> tuple[str, ...]:
    """Overrides of a recipe."""
    settings = [
        f"--model.path={task.model}",
        f"--precision.params_dtype={'fp32' if number_format == 'fp32' else 'bf16'}",
        f"--optimizer.lr={lr}",
        "--optimizer.lr_warmup_steps=0",
        "--optimizer.weight_decay=0",
        "--rollout.prompts_per_step=4" if task.chat else "--rollout.prompts_per_step=8",
        "--rollout.group_size=8",
        f"--rollout.max_response_length={task.tokens}",
        "--resrl.rank=8",
    ]
    if number_format in RECIPES:
        settings += ["--precision.fp8=hybrid", f"--precision.fp8_recipe={number_format}"]
    return tuple(settings)


class Run:
    """A policy in one format, its engine, and what its steps show."""

    def __init__(self, task: Task, number_format: str, seed: int, lr: float) -> None:
        from transformer_engine.pytorch.quantization import FP8GlobalStateManager
        from transformers import AutoTokenizer

        from megatron_resrl.config.load import load_recipe
        from megatron_resrl.platform.distributed import initialize
        from megatron_resrl.rollout.engines.megatron import MegatronEngine
        from megatron_resrl.rollout.worker import build_policy
        from megatron_resrl.token_weighting.factory import build_weighting
        from megatron_resrl.training.algorithm import algorithm_of, weighting_of
        from megatron_resrl.training.rl_step import StepSettings

        FP8GlobalStateManager.reset()
        self.task, self.seed = task, seed
        self.recipe = load_recipe(None, settings_of(task, number_format, lr))
        initialize(self.recipe.parallel, seed)
        self.policy = build_policy(self.recipe)
        self.engine = MegatronEngine(self.policy, max_running_samples=64)
        self.tokenizer = AutoTokenizer.from_pretrained(task.model)
        self.algorithm = algorithm_of(self.recipe)
        recipe = self.recipe
        self.weighting = build_weighting(
            weighting_of(recipe), self.policy, recipe.resrl, recipe.rollout, seed=recipe.seed
        )
        self.settings = StepSettings.from_recipe(recipe)
        self.state: Any = None

    def rollouts(self, step: int) -> list[Any]:
        """Samples of the step's prompts from the present weights."""
        from megatron_resrl.data.prompts import Prompt, PromptRecord
        from megatron_resrl.rollout.collect import Sample
        from megatron_resrl.rollout.engine import GenerationRequest, SamplingParams

        rollout, count = self.recipe.rollout, self.recipe.rollout.prompts_per_step
        first = (step - 1) * count
        asked = [self.task.questions[(first + i) % len(self.task.questions)] for i in range(count)]
        prompts = [self._prompt_ids(each["prompt"]) for each in asked]
        stop = (self.tokenizer.eos_token_id,)
        sampling = SamplingParams(rollout.max_response_length, stop, n=rollout.group_size)
        groups = self.engine.generate(GenerationRequest(prompts, sampling, seed=(self.seed, step)))
        samples = []
        for number, (question, ids, responses) in enumerate(
            zip(asked, prompts, groups, strict=True)
        ):
            record = PromptRecord(number, [{"role": "user", "content": ""}], "", "", {})
            for response in responses:
                text = self.tokenizer.decode(response.token_ids, skip_special_tokens=True)
                score = self.task.grade(text, question["answer"])
                prompt = Prompt(record, tuple(ids))
                samples.append(Sample(number, prompt, response, text, score, score, False))
        return samples

    def _prompt_ids(self, text: str) -> list[int]:
        if not self.task.chat:
            return self.tokenizer.encode(text)
        messages = [
            {"role": "system", "content": "Answer with a number."},
            {"role": "user", "content": text},
        ]
        return self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True
        )["input_ids"]

    def step(self, step: int, samples: Sequence[Any]) -> dict[str, float]:
        """One ResRL step on samples; its metrics. What it worked out is in `state`."""
        from megatron_resrl.diagnostics.observer import StepObservers
        from megatron_resrl.diagnostics.step_metrics import StepMetrics
        from megatron_resrl.observe.timers import PhaseTimers
        from megatron_resrl.rollout.batch import RolloutBatch
        from megatron_resrl.training.rl_step import rl_step

        outcome = rl_step(
            self.policy,
            self.algorithm,
            self.weighting,
            RolloutBatch.from_samples(samples),
            self.settings,
            step,
            PhaseTimers(),
            StepObservers([StepMetrics(), self]),
        )
        rewards = [sample.reward for sample in samples]
        return outcome.metrics | {"reward": statistics.mean(rewards)}

    def before_scoring(self, start: Any) -> None:
        """See `StepObserver`."""

    def after_scoring(self, state: Any) -> None:
        """See `StepObserver`."""
        self.state = state

    def after_updates(self, state: Any) -> dict[str, float]:
        """See `StepObserver`."""
        return {}

    def gradient(self) -> torch.Tensor:
        """Of the last update, all weights in one vector."""
        buffers = [buffer for chunk in self.policy.chunks for buffer in chunk.buffers]
        return torch.cat([buffer.grad_data for buffer in buffers]).clone()


def one_step(task: Task) -> dict[str, dict[str, float]]:
    """Every format on the rollouts of fp32, compared with fp32."""
    samples, exact, found = None, None, {}
    for number_format in FORMATS:
        run = Run(task, number_format, seed=0, lr=0.0)
        samples = run.rollouts(1) if samples is None else samples
        if number_format == "delayed":
            # Scales of the first pass would be 1: as in a run, there have been passes before.
            run.step(1, samples)
        metrics = run.step(1, samples)
        state = run.state
        seen = {
            "log_probs": state.scores.log_probs[state.local.loss_mask].double(),
            "weights": state.token_weights.weights[
                state.local.loss_mask & ~state.local.positive[:, None]
            ].double(),
            "gradient": run.gradient(),
            "q_low": metrics["resrl/residual_q_low"],
            "q_high": metrics["resrl/residual_q_high"],
            "norm": metrics["grad_norm"],
        }
        exact = exact or seen
        found[number_format] = compare(seen, exact) | {"reward": metrics["reward"]}
        say(f"{task.model.name}, {number_format}: {found[number_format]}")
    return found


def compare(seen: dict[str, Any], exact: dict[str, Any]) -> dict[str, float]:
    """Numbers of a format beside those of fp32."""
    change = seen["log_probs"] - exact["log_probs"]
    moved = (seen["weights"] - exact["weights"]).abs()
    quantiles = torch.quantile(moved, torch.tensor(QUANTILES, dtype=moved.dtype)).tolist()
    # In double: sums over 10^8 numbers lose percents in fp32.
    one, other = seen["gradient"].double(), exact["gradient"].double()
    cosine = torch.dot(one, other) / (one.norm() * other.norm())
    return {
        "tokens": len(change),
        "mean": float(change.mean()),
        "mean_abs": float(change.abs().mean()),
        "max_abs": float(change.abs().max()),
        # Of tokens that the fp32 policy has sampled: KL(fp32 || format), never negative.
        "kl": float((change.exp() - 1 - change).mean()),
        "q_low": seen["q_low"] / exact["q_low"],
        "q_high": seen["q_high"] / exact["q_high"],
        **{f"weight_{q}": value for q, value in zip(QUANTILES, quantiles, strict=True)},
        "weight_mean": float(moved.mean()),
        "norm": seen["norm"] / exact["norm"],
        "cosine": float(cosine),
    }


def curves(task: Task, steps: int, seeds: Sequence[int]) -> dict[str, Any]:
    """Rewards of each format on rollouts of its own, and its steps on those of fp32."""
    found: dict[str, Any] = {"own": {}, "replayed": {}}
    recorded: list[list[Any]] = []
    for seed in seeds:
        for number_format in FORMATS:
            run = Run(task, number_format, seed, task.lr)
            rewards = []
            for step in range(1, steps + 1):
                samples = run.rollouts(step)
                if number_format == "fp32" and seed == seeds[0]:
                    recorded.append(samples)
                rewards.append(run.step(step, samples)["reward"])
            found["own"].setdefault(number_format, []).append(rewards)
            say(f"seed {seed}, {number_format}: {statistics.mean(rewards[-5:]):.3f} at the end")
    for number_format in FORMATS:
        run = Run(task, number_format, seeds[0], task.lr)
        metrics = [run.step(number, each) for number, each in enumerate(recorded, start=1)]
        found["replayed"][number_format] = {
            name: [each[name] for each in metrics] for name in ("loss", "grad_norm")
        }
        say(f"replayed, {number_format}")
    return found


def small_task(directory: Path) -> Task:
    """A random Llama of 0.1 million parameters that is to answer with an even number."""
    from training_curves import write_task

    write_task(directory)
    questions = [{"prompt": f"{n} {n + 1}", "answer": ""} for n in range(3, 60)]
    return Task(directory / "model", questions, even, tokens=8, lr=3e-2, chat=False)


def train_small(task: Task, directory: Path) -> Task:
    """The task with the model as some steps in fp32 leave it."""
    from safetensors.torch import save_file
    from transformers import AutoConfig

    from megatron_resrl.weights.hugging_face import export_weights

    run = Run(task, "fp32", 0, task.lr)
    for step in range(1, TRAINED_STEPS + 1):
        run.step(step, run.rollouts(step))
    AutoConfig.from_pretrained(task.model).save_pretrained(directory)
    run.tokenizer.save_pretrained(directory)
    weights = dict(export_weights(run.policy.modules, run.policy.hf_config))
    contiguous = {name: weight.contiguous() for name, weight in weights.items()}
    save_file(contiguous, directory / "model.safetensors", {"format": "pt"})
    return Task(directory, task.questions, task.grade, task.tokens, task.lr, task.chat)


def measure(options: argparse.Namespace) -> None:
    """Measures the parts asked for, and adds them to the file of numbers."""
    found = json.loads(options.numbers.read_text()) if options.numbers.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        small = small_task(Path(folder))
        for part in options.parts:
            if part == "quickstart":
                file = options.model.parent / "data" / "train.jsonl"
                questions = [json.loads(line) for line in file.read_text().splitlines()]
                task = Task(options.model, questions, number_of, tokens=16, lr=3e-5, chat=True)
                found[part] = one_step(task)
            elif part == "small":
                target = Path(folder) / "trained"
                target.mkdir()
                found[part] = one_step(train_small(small, target))
            else:
                found[part] = curves(small, options.steps, options.seeds)
            options.numbers.write_text(json.dumps(found))


def say(line: str) -> None:
    """To standard error, so that the page alone is on standard output."""
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Measures on Transformer Engine's layers, in a process of its own, and prints the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("outputs/quickstart/model"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--steps", type=int, default=20, help="of the curves; a multiple of 5")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1))
    parser.add_argument("--numbers", type=Path)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if "TE_ON_CPU" in os.environ:
        measure(options)
        return
    engine = REPOSITORY / ".te"
    if not (engine / "transformer_engine").is_dir():
        raise SystemExit(f"{engine} has no transformer_engine; run tools/install.sh te-on-cpu")
    with tempfile.TemporaryDirectory() as folder:
        options.numbers = options.numbers or Path(folder) / "numbers.json"
        path = [REPOSITORY / "tests" / "te_on_cpu" / "site", REPOSITORY]
        environment = os.environ | {
            "TE_ON_CPU": str(engine),
            "PYTHONPATH": os.pathsep.join(map(str, path)),
            "PYTHONWARNINGS": "ignore",
            "CUDA_VISIBLE_DEVICES": "",
        }
        command = [sys.executable, *sys.argv, "--numbers", str(options.numbers)]
        subprocess.run(command, check=True, env=environment)
        page = report(json.loads(options.numbers.read_text()))
    print(page)
    if options.output:
        options.output.write_text(page)


if __name__ == "__main__":
    main()
