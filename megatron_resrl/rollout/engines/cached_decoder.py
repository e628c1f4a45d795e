"""One batch of cached decoding through all pipeline stages of the policy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_resrl.policy.attention import SdpaCoreAttention
from megatron_resrl.policy.gpt import PolicyModel
from megatron_resrl.policy.token_step import TokenStep

_WHOLE_SEQUENCES: dict[str, Any] = {
    "sequence_parallel": False,
    "scatter_to_sequence_parallel": False,
    "reduce_scatter_embeddings": False,
    "context_parallel_size": 1,
    "cp_group": None,
}
"""What modules and configurations say where tokens are not split over ranks."""


class CachedDecoder:
    """Left-padded prompts and their key-value cache; each call advances the batch.

    Every rank of a replica makes the same calls. Rotary positions count from the padded start;
    attention sees only differences of positions, so the shift changes nothing.
    """

    def __init__(
        self, modules: Sequence[PolicyModel], prompts: Sequence[Sequence[int]], max_new_tokens: int
    ) -> None:
        """
        Args:
            modules: This rank's model chunks, in evaluation mode.
            prompts: Token ids of each row.
            max_new_tokens: Room in the cache after the prompts.
        """
        self.modules = modules
        self.device = next(modules[0].parameters()).device
        self.length = max(len(prompt) for prompt in prompts)
        self.room = self.length + max_new_tokens
        padding = [self.length - len(prompt) for prompt in prompts]
        self.padding = torch.tensor(padding, device=self.device)
        self.padded = any(padding)
        self.allowed = self._allowed()
        rows = [[0] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)]
        self.tokens = torch.tensor(rows, dtype=torch.int64, device=self.device)
        self.context = StaticInferenceContext(len(prompts), self.room)
        # With them a token takes little work of the host.
        self.steps = [
            TokenStep(module, self.room) if TokenStep.takes(module) else None for module in modules
        ]

    def prefill(self) -> torch.Tensor | None:
        """Reads the prompts. Returns the next logits [b, V]; None before the last stage."""
        output = None
        for index in range(len(self.modules)):
            output = self._passed_on(index, self._through(index, self.tokens, 0))
        self.context.sequence_len_offset = self.length
        self.context.enable_decode_mode()
        return None if output is None else output[:, -1]

    def advance(self, tokens: torch.Tensor) -> torch.Tensor | None:
        """Appends one token per row [b]. Returns like `prefill`."""
        first, output = self.length, None
        for index, step in enumerate(self.steps):
            if step is None:
                output = self._through(index, tokens[:, None], first)
            else:
                output = self._take(step, tokens, first)
            output = self._passed_on(index, output)
        self.length += 1
        self.context.sequence_len_offset = self.length
        return None if output is None else output[:, -1]

    def select(self, rows: torch.Tensor) -> None:
        """Keeps (or repeats) rows of the batch, by index, in the cache and the padding."""
        memory = self.context.key_value_memory_dict
        for layer, (keys, values) in memory.items():
            memory[layer] = (_rows_of(keys, rows), _rows_of(values, rows))
        self.padding = self.padding[rows]
        self.allowed = self._allowed()
        self.context.max_batch_size = len(rows)

    def _allowed(self) -> torch.Tensor | None:
        """[b, 1, 1, room] of the cache, False at padding; None: no row is padded."""
        if not self.padded:
            return None
        places = torch.arange(self.room, device=self.device)
        return places >= self.padding[:, None, None, None]

    def _mask(self, first: int, last: int) -> torch.Tensor | None:
        """[b, 1, last - first, last], True where attention is forbidden; None: causal."""
        if not self.padded:
            return None
        key = torch.arange(last, device=self.device)
        query = key[first:, None]
        forbidden = (key > query) | (key < self.padding[:, None, None, None])
        # Padding sees itself, so that no row of the softmax is empty.
        return forbidden & (key != query)

    def _take(self, step: TokenStep, tokens: torch.Tensor, position: int) -> torch.Tensor:
        """One token of each row [b] through a chunk; see `TokenStep`, logits as [b, 1, V]."""
        received = None if step.module.pre_process else self._receive(1, len(tokens))
        memory = self.context.key_value_memory_dict
        output = step(tokens, received, memory, position, self.allowed)
        return output[:, None] if step.module.post_process else output

    def _through(self, index: int, tokens: torch.Tensor, first: int) -> torch.Tensor:
        """Tokens [b, s] through a chunk: logits [b, s or 1, V], or hidden states [s, b, h]."""
        module = self.modules[index]
        rows, count = tokens.shape
        positions = torch.arange(first, first + count, device=self.device).expand(rows, -1)
        if not module.pre_process:
            module.set_input_tensor(self._receive(count, rows))
        return module(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=self._mask(first, first + count),
            inference_context=self.context,
            runtime_gather_output=True,
        )

    def _passed_on(self, index: int, output: torch.Tensor) -> torch.Tensor | None:
        """Sends hidden states to the next stage; logits stay."""
        if not self.modules[index].post_process:
            self._send(output)
            return None
        if index != len(self.modules) - 1:
            raise RuntimeError("the output layer must be in a rank's last model chunk")
        return output

    def _receive(self, count: int, rows: int) -> torch.Tensor:
        config = self.modules[0].config
        shape = (count, rows, config.hidden_size)
        hidden = torch.empty(shape, dtype=config.pipeline_dtype, device=self.device)
        source = parallel_state.get_pipeline_model_parallel_prev_rank()
        dist.recv(hidden, src=source, group=parallel_state.get_pipeline_model_parallel_group())
        return hidden

    def _send(self, hidden: torch.Tensor) -> None:
        destination = parallel_state.get_pipeline_model_parallel_next_rank()
        group = parallel_state.get_pipeline_model_parallel_group()
        dist.send(hidden.contiguous(), dst=destination, group=group)


def _rows_of(memory: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Rows of keys or values [L, b, groups, head_dim], the positions of a head side by side."""
    return memory.permute(1, 2, 0, 3).index_select(0, rows).permute(2, 0, 1, 3)


@contextlib.contextmanager
def whole_sequences(modules: Sequence[PolicyModel]) -> Iterator[None]:
    """Turns sequence and context parallelism, and FP8, off inside the block.

    One new token cannot be split, and every context-parallel rank decodes prompts of its own. FP8
    products take multiples of 8 rows, which a batch of one token per sample need not be, and would
    use the FP8 weights from before the last optimizer step: only the pipeline's schedules say when
    they are to be made anew.
    """
    config = modules[0].config
    if not config.sequence_parallel and config.context_parallel_size == 1 and not config.fp8:
        yield
        return
    parts = [part for module in modules for part in module.modules()]
    configs = {id(part.config): part.config for part in parts if hasattr(part, "config")}
    changed: list[tuple[Any, str, Any]] = [
        (owner, name, getattr(owner, name))
        for owner in (*parts, *configs.values())
        for name, whole in _WHOLE_SEQUENCES.items()
        if getattr(owner, name, whole) != whole
    ]
    # Of configurations only: Transformer Engine's modules note under this name what they did last.
    changed += [
        (config, "fp8", config.fp8)
        for config in configs.values()
        if isinstance(config, TransformerConfig) and config.fp8
    ]
    # Whether a module saves its FP8 scales is what it notes here in its last forward pass.
    metas = (getattr(part, "fp8_meta", None) for part in parts)
    notes = [meta for meta in metas if meta is not None]
    saves_scales = [note["fp8_checkpoint"] for note in notes]
    for owner, name, _ in changed:
        setattr(owner, name, _WHOLE_SEQUENCES.get(name))
    _forget_rotary_embeddings()
    try:
        yield
    finally:
        for owner, name, value in changed:
            setattr(owner, name, value)
        for note, saves in zip(notes, saves_scales, strict=True):
            note["fp8_checkpoint"] = saves
        _forget_rotary_embeddings()


@contextlib.contextmanager
def one_attention(modules: Sequence[PolicyModel]) -> Iterator[None]:
    """Has layers of Transformer Engine attend with our own kernel inside the block.

    Theirs chooses and plans a kernel anew for every length of the cache, that is for every token,
    and ignores the mask that hides the padding of prompts of unequal lengths.
    """
    replaced = [
        (part, part.core_attention)
        for module in modules
        for part in module.modules()
        if isinstance(part, SelfAttention)
        and not isinstance(part.core_attention, SdpaCoreAttention)
    ]
    for part, _ in replaced:
        part.core_attention = SdpaCoreAttention(
            part.config,
            part.layer_number,
            part.attn_mask_type,
            part.attention_type,
            softmax_scale=part.config.softmax_scale,
        ).eval()
    try:
        yield
    finally:
        for part, own in replaced:
            part.core_attention = own


def _forget_rotary_embeddings() -> None:
    """megatron-core caches them by length, not by the context-parallel share they were made for."""
    RotaryEmbedding.forward.cache_clear()
