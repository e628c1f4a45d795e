"""What supervised fine-tuning measures: the loss on held-out conversations, and answers to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron.core import parallel_state

from megatron_resrl.config.schema_sft import SftRecipe
from megatron_resrl.data.fine_tuning import Example
from megatron_resrl.observe.json_lines import json_line
from megatron_resrl.platform.distributed import run_on_rank_zero
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.engine import GenerationRequest, Response, SamplingParams
from megatron_resrl.rollout.engines.megatron import MegatronEngine
from megatron_resrl.rollout.sampling import EVALUATION_STREAM, default_stop_tokens
from megatron_resrl.training.sft_batch import supervised_batch
from megatron_resrl.training.supervised import SupervisedBatch, mean_loss


class SftEvaluation:
    """Measures a policy on the held-out files of a recipe.

    Args:
        recipe: Of the run.
        held_out: Name of each file -> its examples.
        policy: The one that is trained.
        tokenizer: The model's.
    """

    def __init__(
        self,
        recipe: SftRecipe,
        held_out: Mapping[str, Sequence[Example]],
        policy: Policy,
        tokenizer: Any,
    ) -> None:
        self._recipe = recipe
        self._held_out = held_out
        self._policy = policy
        self._tokenizer = tokenizer
        self._engine = MegatronEngine(policy, max_running_samples=max(1, recipe.evaluation.samples))
        self._stop_token_ids = default_stop_tokens(recipe.model.path, policy.hf_config, tokenizer)

    def measure(self, step: int) -> dict[str, float]:
        """`eval/<file>/loss`, `perplexity` and `targets`; answers go to files. Collective."""
        metrics: dict[str, float] = {}
        for number, (name, examples) in enumerate(self._held_out.items()):
            found = mean_loss(self._policy, list(self._batches(examples)))
            metrics |= {f"eval/{name}/{kind}": value for kind, value in found.items()}
            asked = list(examples[: self._recipe.evaluation.samples])
            if asked:
                self._keep(name, step, asked, self._answers(asked, number))
        return metrics

    def _batches(self, examples: Sequence[Example]) -> Iterator[SupervisedBatch]:
        """This replica's share, as many batches as every other replica has."""
        settings = self._recipe.batch
        replica = parallel_state.get_data_parallel_rank()
        replicas = parallel_state.get_data_parallel_world_size()
        for start in range(0, len(examples), settings.global_batch_size):
            own = examples[start : start + settings.global_batch_size][replica::replicas]
            limit, multiple = self._recipe.data.max_length, self._policy.prefix_multiple
            yield supervised_batch(own, settings, limit, multiple)

    def _answers(self, examples: Sequence[Example], number: int) -> list[Response]:
        """What the policy says in place of the assistant's first turn. Collective."""
        evaluation = self._recipe.evaluation
        sampling = SamplingParams(
            max_new_tokens=evaluation.max_response_length,
            stop_token_ids=self._stop_token_ids,
            temperature=evaluation.temperature,
        )
        request = GenerationRequest(
            [example.prompt for example in examples],
            sampling,
            (self._recipe.seed, EVALUATION_STREAM, number),
        )
        return [answers[0] for answers in self._engine.begin(request).result()]

    def _keep(
        self, name: str, step: int, examples: Sequence[Example], answers: Sequence[Response]
    ) -> None:
        """Rank 0 writes `<output_dir>/evaluation/step_<step>/<file>.jsonl`."""
        decode = self._tokenizer.decode
        lines = [
            json_line(
                {
                    "step": step,
                    "conversation": str(example.record),
                    "prompt": decode(example.prompt),
                    "response": decode(answer.token_ids),
                    "reference": decode(example.token_ids[example.targets]),
                    "tokens": len(answer.token_ids),
                    "finish_reason": answer.finish_reason,
                }
            )
            for example, answer in zip(examples, answers, strict=True)
        ]
        folder = Path(self._recipe.output_dir) / "evaluation" / f"step_{step:06d}"

        def write() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            text = "".join(lines)
            (folder / f"{name}.jsonl").write_text(text, encoding="utf-8", newline="\n")

        run_on_rank_zero(write)
