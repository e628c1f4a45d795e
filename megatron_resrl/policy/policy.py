"""The policy: scores tokens, and takes optimizer steps, in any TP x PP x DP layout."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from transformers import PretrainedConfig

from megatron_resrl.config.schema import Recipe
from megatron_resrl.data.packing import MicroBatch, TokenSequence, make_micro_batches
from megatron_resrl.platform.distributed import device, largest
from megatron_resrl.policy.experts import lock_step_group
from megatron_resrl.policy.gpt import PolicyModel, build_model_chunks
from megatron_resrl.policy.hidden_states import tap_last_layer
from megatron_resrl.policy.log_probs import vocab_parallel_log_probs
from megatron_resrl.policy.model_config import read_hf_config, transformer_config
from megatron_resrl.policy.optimizer import (
    finish_parameter_gather,
    gradients_are_finite,
    make_optimizer,
    wrap_in_ddp,
    zero_gradients,
)
from megatron_resrl.policy.schedule import is_last_stage, run_pipeline
from megatron_resrl.weights.hugging_face import load_weights


@dataclass(frozen=True)
class TokenScores:
    """What the scoring pass knows of one micro-batch's n response tokens; last stage only."""

    log_probs: torch.Tensor
    """[n] fp32."""
    entropy: torch.Tensor
    """[n] fp32, nats."""


@dataclass(frozen=True)
class TappedStates:
    """Penultimate hidden states of the response tokens this rank holds of one micro-batch.

    All n tokens, or under sequence parallelism those of this rank's slice of the sequence.
    """

    hidden: torch.Tensor
    """[m, H]: the state that predicts each token."""
    token: torch.Tensor
    """[m] int64: which of the micro-batch's n response tokens."""


@dataclass(frozen=True)
class UpdateResult:
    """Outcome of one optimizer step, the same on all ranks except for `collected`."""

    applied: bool
    """False: a gradient was not finite and every rank skipped the step."""
    grad_norm: float
    """Global norm before clipping; NaN for a skipped step."""
    learning_rate: float
    """Of this step."""
    collected: list[Any]
    """What the loss function collected per micro-batch; empty but on the last stage."""


LossFunction = Callable[[torch.Tensor, torch.Tensor, MicroBatch], tuple[torch.Tensor, Any]]
"""(log_probs [n], entropy [n], micro-batch) -> this micro-batch's share of the loss, and
whatever the caller collects."""


class Policy:
    """A megatron-core GPT with its optimizer.

    Attributes:
        hf_config: Hugging Face configuration.
        config: megatron-core configuration.
        modules: This rank's bare model chunks.
    """

    def __init__(
        self,
        hf_config: PretrainedConfig,
        config: TransformerConfig,
        modules: list[PolicyModel],
    ) -> None:
        self.hf_config = hf_config
        self.config = config
        self.modules = modules
        self.chunks: list[DistributedDataParallel] = []
        self.optimizer: MegatronOptimizer | None = None
        self.scheduler: OptimizerParamScheduler | None = None

    @classmethod
    def from_recipe(cls, recipe: Recipe, *, trainable: bool = True) -> Policy:
        """Builds the model of `recipe.model.path` in the recipe's layout and loads its weights.

        Args:
            recipe: Checked settings; process groups exist.
            trainable: Also make gradient buffers and the optimizer.
        """
        hf_config = read_hf_config(recipe.model.path)
        config = transformer_config(hf_config, recipe.model, recipe.parallel, recipe.precision)
        modules = build_model_chunks(hf_config, config)
        modules = [module.to(device(), config.params_dtype) for module in modules]
        load_weights(modules, hf_config, recipe.model.path)
        policy = cls(hf_config, config, modules)
        if trainable:
            policy.chunks = wrap_in_ddp(modules, recipe.parallel)
            total = recipe.steps * recipe.algorithm.updates_per_step
            policy.optimizer, policy.scheduler = make_optimizer(
                policy.chunks, recipe.optimizer, recipe.parallel, total
            )
        return policy

    @property
    def tensor_parallel_group(self) -> torch.distributed.ProcessGroup:
        """Ranks that share each layer's matrices."""
        return parallel_state.get_tensor_model_parallel_group()

    def micro_batches(
        self, sequences: Sequence[TokenSequence], micro_batch_size: int
    ) -> list[MicroBatch]:
        """Cuts this data-parallel rank's sequences into micro-batches that the layout can take.

        Collective over replicas that share their experts: all get as many micro-batches, some
        without response tokens.
        """
        pipeline = self.config.pipeline_model_parallel_size
        interleaved = self.config.virtual_pipeline_model_parallel_size is not None
        parallel = self.config.tensor_model_parallel_size if self.config.sequence_parallel else 1
        count = max(1, math.ceil(len(sequences) / micro_batch_size))
        together = lock_step_group()
        if together is not None:
            count = largest(count, together)
        batches = make_micro_batches(
            sequences,
            micro_batch_size,
            length_multiple=parallel * 16 if self.config.fp8 else parallel,
            uniform=interleaved,
            count_multiple=math.ceil(count / pipeline) * pipeline if interleaved else count,
        )
        return [batch.to(device()) for batch in batches]

    def score(
        self,
        micro_batches: Sequence[MicroBatch],
        *,
        temperature: float = 1.0,
        on_hidden_states: Callable[[TappedStates, MicroBatch], None] | None = None,
    ) -> list[TokenScores]:
        """Forward-only pass: log-probabilities and entropy of every response token.

        Args:
            micro_batches: Of this replica.
            temperature: Divides the logits, as when the responses were sampled.
            on_hidden_states: Called on the last stage after each micro-batch with the penultimate
                hidden states of its response tokens.

        Returns:
            One entry per micro-batch on the last pipeline stage, else nothing.
        """

        def last_stage(hidden: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, TokenScores]:
            scores = TokenScores(*self._log_probs(hidden, batch, temperature))
            if on_hidden_states is not None:
                on_hidden_states(self._response_states(tap.take(), batch), batch)
            return scores.log_probs.sum(), scores

        self.eval()
        if not (is_last_stage() and on_hidden_states is not None):
            return run_pipeline(self.modules, micro_batches, last_stage, forward_only=True)
        with tap_last_layer(self.modules[-1]) as tap:
            return run_pipeline(self.modules, micro_batches, last_stage, forward_only=True)

    def update(
        self,
        micro_batches: Sequence[MicroBatch],
        loss_function: LossFunction,
        *,
        temperature: float = 1.0,
    ) -> UpdateResult:
        """One optimizer step on the sum of `loss_function` over micro-batches and replicas.

        Args:
            micro_batches: Of this replica.
            loss_function: Called on the last stage; global denominators are its business.
            temperature: Divides the logits.

        Returns:
            The outcome; weights are untouched if a gradient was not finite on any rank.
        """

        def last_stage(hidden: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, Any]:
            return loss_function(*self._log_probs(hidden, batch, temperature), batch)

        self.train()
        zero_gradients(self.chunks, self.optimizer)
        collected = run_pipeline(self.chunks, micro_batches, last_stage, forward_only=False)
        self.scheduler.step(increment=1)
        learning_rate = self.optimizer.param_groups[0]["lr"]
        if not gradients_are_finite(self.chunks):
            return UpdateResult(False, float("nan"), learning_rate, collected)
        applied, grad_norm, _ = self.optimizer.step()
        finish_parameter_gather(self.chunks)
        return UpdateResult(bool(applied), float(grad_norm), learning_rate, collected)

    def train(self) -> None:
        """Dropout on."""
        for module in self.modules:
            module.train()

    def eval(self) -> None:
        """Dropout off."""
        for module in self.modules:
            module.eval()

    def _log_probs(
        self, hidden: torch.Tensor, batch: MicroBatch, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """log-probs [n] and entropy [n] of the response tokens from the final hidden states."""
        group = self.tensor_parallel_group
        if self.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, group=group)
        else:
            hidden = copy_to_tensor_model_parallel_region(hidden, group=group)
        return vocab_parallel_log_probs(
            hidden.flatten(0, 1)[batch.state_index],
            self.modules[-1].output_weight(),
            batch.targets,
            vocab_size=self.hf_config.vocab_size,
            temperature=temperature,
            group=group,
        )

    def _response_states(self, hidden: torch.Tensor, batch: MicroBatch) -> TappedStates:
        """Picks the states that predict response tokens out of [s or s / TP, b, H]."""
        flat = hidden.flatten(0, 1)
        rank = parallel_state.get_tensor_model_parallel_rank()
        first = rank * len(flat) if self.config.sequence_parallel else 0
        local = batch.state_index - first
        token = torch.nonzero((local >= 0) & (local < len(flat))).flatten()
        return TappedStates(hidden=flat[local[token]], token=token)
