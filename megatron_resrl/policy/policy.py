"""The policy: scores tokens, and takes optimizer steps, in any TP x PP x CP x DP layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
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

from megatron_resrl.config.schema import (
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PrecisionConfig,
)
from megatron_resrl.config.shared_prompts import Sharing
from megatron_resrl.platform.distributed import device
from megatron_resrl.policy.balancing import (
    balances_experts,
    summed_balancing,
    take_balancing_loss,
)
from megatron_resrl.policy.batches import MicroBatch, TokenBatch, parts_in_order
from megatron_resrl.policy.cross_entropy import TokenLoss, vocab_parallel_cross_entropy
from megatron_resrl.policy.gpt import PolicyModel, build_model_chunks
from megatron_resrl.policy.hidden_states import HiddenStateLocations, OnHiddenStates
from megatron_resrl.policy.layout_batches import lay_out, length_multiple
from megatron_resrl.policy.log_probs import vocab_parallel_log_probs
from megatron_resrl.policy.model_config import read_hf_config, transformer_config
from megatron_resrl.policy.optimizer import Training
from megatron_resrl.policy.results import (
    BeforeStep,
    LossFunction,
    OnFinalStates,
    TokenScores,
    UpdateResult,
)
from megatron_resrl.policy.schedule import AfterForward, LastStage, run_pipeline
from megatron_resrl.policy.shared_prompts import shares_prompts
from megatron_resrl.weights.fresh import FreshWeights, draw_weights
from megatron_resrl.weights.load import load_model_weights

_COPIES = Sharing("never")


class Policy:
    """A megatron-core GPT with its optimizer.

    Attributes:
        hf_config: Hugging Face configuration.
        config: megatron-core configuration.
        modules: This rank's bare model chunks.
        sequence_packing: Micro-batches are packed rather than padded.
        shared_prompts: What sequences have in common at their beginning, such as their prompt, is
            fed once in a micro-batch.
        tokenizer_path: Setting `model.tokenizer_path`; a saved policy gets that tokenizer.
    """

    def __init__(
        self,
        hf_config: PretrainedConfig,
        config: TransformerConfig,
        modules: list[PolicyModel],
        *,
        sequence_packing: bool = False,
        shared_prompts: bool = False,
        tokenizer_path: str | None = None,
        training: Training | None = None,
    ) -> None:
        """Collective over the pipeline; see `build`."""
        self.hf_config = hf_config
        self.config = config
        self.modules = modules
        self.sequence_packing = sequence_packing
        self.shared_prompts = shared_prompts
        self.tokenizer_path = tokenizer_path
        self._states = HiddenStateLocations(modules, config.num_layers)
        self._training = training

    @classmethod
    def build(
        cls,
        model: ModelConfig,
        parallel: ParallelConfig,
        precision: PrecisionConfig,
        *,
        optimizer: OptimizerConfig | None = None,
        total_updates: int = 1,
        sequence_packing: bool = False,
        sharing: Sharing = _COPIES,
        load_weights: bool = True,
        fresh: FreshWeights | None = None,
    ) -> Policy:
        """Builds the model of `model.path` in a layout and loads its weights. Collective.

        Args:
            model: Where the weights are, and what differs from their configuration.
            parallel: Layout; its process groups exist.
            precision: Number formats.
            optimizer: Makes gradient buffers and an optimizer; None: the policy only scores.
            total_updates: Optimizer steps of the whole run, the default length of the decay.
            sequence_packing: Pack the sequences of a micro-batch instead of padding them.
            sharing: Whether what sequences have in common at their beginning is fed once in a
                micro-batch, which is packed then.
            load_weights: False: only config.json is read, and the weights have no meaning.
            fresh: How weights are drawn instead of loaded; None: they are loaded.

        Raises:
            InputError: The model cannot be used, or its prompts cannot be shared as asked.
        """
        hf_config = read_hf_config(model.path, model.tokenizer_path)
        config = transformer_config(hf_config, model, parallel, precision)
        shared = shares_prompts(sharing, model, precision, config, packed=sequence_packing)
        modules = build_model_chunks(hf_config, config)
        modules = [module.to(device(), config.params_dtype) for module in modules]
        if fresh is not None and load_weights:
            draw_weights(modules, hf_config, fresh)
        elif load_weights:
            load_model_weights(modules, hf_config, model.path)
        training = None
        if optimizer is not None:
            training = Training.of(modules, optimizer, parallel, total_updates)
        return cls(
            hf_config,
            config,
            modules,
            sequence_packing=sequence_packing,
            shared_prompts=shared,
            tokenizer_path=model.tokenizer_path,
            training=training,
        )

    @property
    def trainable(self) -> bool:
        """Whether it has an optimizer; else it only scores."""
        return self._training is not None

    @property
    def chunks(self) -> list[DistributedDataParallel]:
        """This rank's model chunks with their gradient buffers; raises like `optimizer`."""
        return self._require_training().chunks

    @property
    def optimizer(self) -> MegatronOptimizer:
        """megatron-core's optimizer.

        Raises:
            ValueError: The policy only scores.
        """
        return self._require_training().optimizer

    @property
    def scheduler(self) -> OptimizerParamScheduler:
        """The learning rate by optimizer steps; raises like `optimizer`."""
        return self._require_training().scheduler

    def _require_training(self) -> Training:
        if self._training is None:
            raise ValueError("this policy only scores: build it with an optimizer to train it")
        return self._training

    @property
    def prefix_multiple(self) -> int | None:
        """What the lengths of shared beginnings are multiples of; None: none is shared."""
        return length_multiple(self.config) if self.shared_prompts else None

    @property
    def tensor_parallel_group(self) -> dist.ProcessGroup:
        """Ranks that share each layer's matrices."""
        return parallel_state.get_tensor_model_parallel_group()

    @property
    def context_parallel_group(self) -> dist.ProcessGroup:
        """Ranks that share each sequence: their response tokens add up to the whole."""
        return parallel_state.get_context_parallel_group()

    def tap_stage(self, layer: int) -> int:
        """Pipeline rank that holds `hidden_states[layer]`.

        Args:
            layer: Index into Hugging Face's `hidden_states`; negative ones count from the end.

        Raises:
            ValueError: The model has no such entry.
        """
        return self._states.stage(layer)

    def holds_tap(self, layer: int) -> bool:
        """Whether this rank's stage holds `hidden_states[layer]`; raises like `tap_stage`."""
        return self._states.chunk(layer) is not None

    def micro_batches(
        self, batch: TokenBatch, micro_batch_size: int, rows: Sequence[int] | None = None
    ) -> list[MicroBatch]:
        """Cuts this data-parallel rank's sequences into micro-batches that the layout can take.

        Context-parallel ranks pass the same batch and get their shares of it. Collective over
        replicas that share their experts: all get as many micro-batches, some without response
        tokens.

        Args:
            batch: On the CPU.
            micro_batch_size: Sequences per micro-batch; the last may hold fewer.
            rows: Rows of the batch, in the order in which they are to pass; None: all.
        """
        rows = range(len(batch)) if rows is None else rows
        return self.micro_batches_of(batch, parts_in_order(rows, micro_batch_size))

    def micro_batches_of(
        self, batch: TokenBatch, parts: Sequence[Sequence[int]]
    ) -> list[MicroBatch]:
        """Like `micro_batches`, with the rows of each micro-batch given. Collective as that."""
        packed, shared = self.sequence_packing, self.shared_prompts
        made = lay_out(self.config, batch, parts, packed=packed, shared=shared)
        return [micro_batch.to(device()) for micro_batch in made]

    def score(
        self,
        micro_batches: Sequence[MicroBatch],
        *,
        temperature: float = 1.0,
        on_hidden_states: OnHiddenStates | None = None,
        layer: int = -2,
        on_final_states: OnFinalStates | None = None,
    ) -> list[TokenScores]:
        """Forward-only pass: log-probabilities and entropy of every response token.

        Args:
            micro_batches: Of this replica.
            temperature: Divides the logits, as when the responses were sampled.
            on_hidden_states: Called on the ranks of `tap_stage(layer)`, for each micro-batch in
                order right after its forward there, with the states of its response tokens.
            layer: Which states: an index into Hugging Face's `hidden_states`. -2: the input of the
                last layer.
            on_final_states: Called on the last stage for each micro-batch with the states [n, H]
                that the output layer multiplies, one per response token.

        Returns:
            One entry per micro-batch on the last pipeline stage, else nothing.

        Raises:
            ValueError: The model has no such layer.
        """

        def last_stage(hidden: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, TokenScores]:
            states = self._token_states(hidden, batch)
            if on_final_states is not None:
                on_final_states(states, batch)
            scores = TokenScores(*self._log_probs(states, batch, temperature))
            return scores.log_probs.sum(), scores

        self.eval()
        with self._states.observing(layer, on_hidden_states) as seen:
            return run_pipeline(
                self.modules, micro_batches, last_stage, forward_only=True, after_forward=seen
            )

    def update(
        self,
        micro_batches: Sequence[MicroBatch],
        loss_function: LossFunction,
        *,
        temperature: float = 1.0,
        entropy_gradient: bool = False,
        on_hidden_states: OnHiddenStates | None = None,
        layer: int = -2,
        on_final_states: OnFinalStates | None = None,
        before_step: BeforeStep | None = None,
    ) -> UpdateResult:
        """One optimizer step on the sum of `loss_function` over micro-batches and data- and
        context-parallel ranks.

        Args:
            micro_batches: Of this replica.
            loss_function: Called on the last stage, under context parallelism on each rank's own
                tokens; it brings the global denominators.
            temperature: Divides the logits.
            entropy_gradient: Give it a differentiable entropy.
            on_hidden_states: As for `score`; it has seen a micro-batch before `loss_function` has.
            layer: As for `score`.
            on_final_states: As for `score`, with detached states.
            before_step: Called on all ranks before the optimizer's step. If it raises, no weight
                has changed, and the next update begins without these gradients.

        Returns:
            The outcome; weights are untouched if a gradient was not finite on any rank.

        Raises:
            ValueError: The policy has no optimizer.
        """

        def last_stage(hidden: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, Any]:
            states = self._token_states(hidden, batch)
            if on_final_states is not None:
                on_final_states(states.detach(), batch)
            scores = self._log_probs(states, batch, temperature, entropy_gradient=entropy_gradient)
            return loss_function(*scores, batch)

        with self._states.observing(layer, on_hidden_states) as seen:
            return self._optimizer_step(micro_batches, last_stage, seen, before_step)

    def fit(self, micro_batches: Sequence[MicroBatch], loss: TokenLoss) -> UpdateResult:
        """One optimizer step on the cross-entropy of the response tokens, summed like `update`.

        Args:
            micro_batches: Of this replica.
            loss: What each token counts; it brings the global denominator.

        Returns:
            The outcome; `collected` holds, for each micro-batch, [2] the sums of -log p and of the
            squared log-normaliser over its tokens. A loss that balances experts, if the model's
            configuration has one, is part of what is minimised.

        Raises:
            ValueError: The policy has no optimizer.
        """

        def last_stage(hidden: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, Any]:
            return vocab_parallel_cross_entropy(
                self._token_states(hidden, batch),
                self.modules[-1].output_weight(),
                batch.targets,
                loss,
                vocab_size=self.hf_config.vocab_size,
                group=self.tensor_parallel_group,
            )

        if not balances_experts(self.config):
            return self._optimizer_step(micro_batches, last_stage)
        with summed_balancing(self.config, loss.coefficient):
            result = self._optimizer_step(micro_batches, last_stage)
        balancing = take_balancing_loss(self.config, len(micro_batches))
        return dataclasses.replace(result, balancing_loss=balancing)

    def _optimizer_step(
        self,
        micro_batches: Sequence[MicroBatch],
        last_stage: LastStage,
        after_forward: AfterForward | None = None,
        before_step: BeforeStep | None = None,
    ) -> UpdateResult:
        self.train()
        return self._require_training().step(micro_batches, last_stage, after_forward, before_step)

    def leave_out_update(self) -> None:
        """Moves the learning-rate schedule past an update that is not made.

        Its length counts planned updates, as Megatron-LM's counts samples.
        """
        self.scheduler.step(increment=1)

    def train(self) -> None:
        """Dropout on."""
        for module in self.modules:
            module.train()

    def eval(self) -> None:
        """Dropout off."""
        for module in self.modules:
            module.eval()

    def _token_states(self, hidden: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        """[n, H] final hidden states that predict the response tokens, on all TP ranks."""
        group = self.tensor_parallel_group
        if self.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, group=group)
        else:
            hidden = copy_to_tensor_model_parallel_region(hidden, group=group)
        return batch.states_of_targets(hidden)

    def _log_probs(
        self,
        states: torch.Tensor,
        batch: MicroBatch,
        temperature: float,
        *,
        entropy_gradient: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """log-probs [n] and entropy [n] of the response tokens."""
        return vocab_parallel_log_probs(
            states,
            self.modules[-1].output_weight(),
            batch.targets,
            vocab_size=self.hf_config.vocab_size,
            temperature=temperature,
            group=self.tensor_parallel_group,
            entropy_gradient=entropy_gradient,
        )
