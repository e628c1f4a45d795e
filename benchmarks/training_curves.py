"""The same training with both rollout engines: do their curves agree within the noise of seeds?

    python benchmarks/training_curves.py --vllm-python PYTHON [--output FILE]

Each run is the product's command with the same data, algorithm and learning rate; of two runs with
one seed only the engine differs, and with it the random numbers that draw tokens. By default the
task is made here: a random Llama of 0.1 million parameters learns to begin its answers with an even
number. `--recipe` takes any other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import command, describe

ENGINES = ("megatron", "vllm")
REWARD = """\
def even(response, ground_truth, **context):
    words = response.split()
    return float(bool(words) and words[0].isdigit() and int(words[0]) % 2 == 0)
"""


def write_task(directory: Path) -> Path:
    """Model, tokenizer, prompts, reward and recipe of the default task. Returns the recipe."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = directory / "model"
    LlamaForCausalLM(config).save_pretrained(model)
    words = {"<s>": 0, "</s>": 1, "<pad>": 2, **{str(n): n for n in range(3, 64)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(model)
    (directory / "reward.py").write_text(REWARD)
    rows = [{"prompt": f"{n} {n + 1}", "answer": str(n)} for n in range(3, 60)]
    (directory / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model": {"path": str(model)},
        "precision": {"params_dtype": "fp32"},
        "data": {
            "train_files": [str(directory / "train.jsonl")],
            "max_prompt_length": 16,
            "apply_chat_template": False,
        },
        "rollout": {"prompts_per_step": 8, "group_size": 8, "max_response_length": 8},
        "reward": {"function": f"{directory / 'reward.py'}:even", "workers": 1},
        "resrl": {"rank": 8},
        "optimizer": {"lr": 3e-2, "lr_warmup_steps": 0, "weight_decay": 0.0},
    }
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def rewards_of(
    recipe: Path, engine: str, seed: int, options: argparse.Namespace, run: Path
) -> list[dict[str, float]]:
    """Trains once. Returns the metrics of each step."""
    command = [sys.executable, "-m", "megatron_resrl", "train", str(recipe)]
    command += ["--output_dir", str(run), "--steps", str(options.steps), "--seed", str(seed)]
    command += ["--rollout.engine", engine, "--evaluation.files", "[]"]
    command += ["--checkpoint.export_hf", "false", "--checkpoint.save_every", "0"]
    command += ["--logging.tensorboard", "false"]
    command += ["--logging.progress_bar", "false", "--vllm.python", options.vllm_python]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").split("\n")[:-1])
    steps = [line for line in lines if line["step"] > 0]
    print(f"{engine}, seed {seed}: {steps[-1]['reward/mean']:.2f} at the end", file=sys.stderr)
    return steps


def report(
    found: dict[tuple[str, int], list[dict[str, float]]], options: argparse.Namespace
) -> str:
    """The page of results."""
    seeds = sorted({seed for _, seed in found})
    windows = [range(first, first + 5) for first in range(0, options.steps, 5)]

    def mean(engine: str, seed: int, window: range) -> float:
        return statistics.mean(found[engine, seed][step]["reward/mean"] for step in window)

    machine = describe(("torch", "megatron-core", "transformers"), torch.get_num_threads())
    lines = [
        "# Training with both engines",
        "",
        f"`{command()}`, {machine}. {options.steps} steps of ResRL, "
        f"seeds {', '.join(map(str, seeds))}, {options.name}. Mean reward of five steps: mean over "
        "seeds ± standard deviation. With so few seeds a difference that is larger than twice its "
        "standard error would be seen, and a smaller one would not: a table without one says that "
        "no difference could be seen, not that there is none.",
        "",
        "| steps | megatron | vllm | difference | its standard error |",
        "|---|---|---|---|---|",
    ]
    for window in windows:
        each = {engine: [mean(engine, seed, window) for seed in seeds] for engine in ENGINES}
        spread = {engine: statistics.stdev(values) for engine, values in each.items()}
        middle = {engine: statistics.mean(values) for engine, values in each.items()}
        error = (sum(value**2 for value in spread.values()) / len(seeds)) ** 0.5
        cells = [f"{middle[engine]:.3f} ± {spread[engine]:.3f}" for engine in ENGINES]
        difference = middle["vllm"] - middle["megatron"]
        row = [f"{window.start + 1}-{window.stop}", *cells, f"{difference:+.3f}", f"{error:.3f}"]
        lines.append(f"| {' | '.join(row)} |")
    worst = {
        engine: max(line["mismatch/log_prob_max"] for seed in seeds for line in found[engine, seed])
        for engine in ENGINES
    }
    lines += [
        "",
        "Largest difference of a log-prob between engine and trainer in all steps: megatron "
        f"{worst['megatron']:.1e}, vllm {worst['vllm']:.1e}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Trains with each engine and seed, and prints the page of results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vllm-python", required=True, help="interpreter that has vLLM")
    parser.add_argument("--recipe", type=Path, help="default: a task made here")
    parser.add_argument("--steps", type=int, default=20, help="a multiple of 5")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    options.name = str(options.recipe) if options.recipe else "a random Llama of 0.1 M parameters"
    with tempfile.TemporaryDirectory() as work:
        recipe = options.recipe or write_task(Path(work))
        found = {
            (engine, seed): rewards_of(
                recipe, engine, seed, options, Path(work) / f"{engine}-{seed}"
            )
            for seed in range(options.seeds)
            for engine in ENGINES
        }
        text = report(found, options)
    print(text)
    if options.output:
        options.output.write_text(text)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).resolve().parents[1]))
    main()
