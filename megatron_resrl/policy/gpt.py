"""The policy network: megatron-core's GPTModel that stops at the final hidden states."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from transformers import PretrainedConfig

from megatron_resrl.policy.families import family_of
from megatron_resrl.policy.layer_spec import decoder_spec
from megatron_resrl.policy.model_config import padded_vocab_size, rotary_inverse_frequencies


class PolicyModel(GPTModel):
    """A GPTModel whose training forward returns hidden states instead of logits.

    The output layer is applied by `log_probs.py`, a chunk of tokens at a time, so that the
    logits of a batch never exist at once. Cached decoding still returns logits.
    """

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        padding: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """megatron-core's forward, in which padding can be kept at zero.

        FP8 takes its scales from the largest numbers of all rows of a matrix. Rows of zeros add
        nothing to them: the embeddings of padding are set to zero here, its attention in
        `layer_spec.zero_at_padding`, and the other modules of a layer map zeros to zeros.

        Args:
            input_ids: [b, s] int64.
            position_ids: [b, s] int64.
            attention_mask: [b, 1, q, k] bool of cached decoding, else None.
            padding: [b, s] bool, True at positions without a token; None: treat all alike.
            **kwargs: megatron-core's.

        Returns:
            [s, b, h], or [s / TP, b, h] under sequence parallelism.
        """
        if padding is not None:
            if self.pre_process:
                kwargs["decoder_input"] = self._embed_tokens(input_ids, position_ids, padding)
            attention_mask = padding
        return super().forward(input_ids, position_ids, attention_mask, **kwargs)

    def _embed_tokens(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, padding: torch.Tensor
    ) -> torch.Tensor:
        """Embeddings with zeros at padding; this rank's slice under sequence parallelism."""
        embedded = self.embedding(input_ids=input_ids, position_ids=position_ids)
        padding = padding.T.unsqueeze(-1)  # [b, s] -> [s, b, 1]
        if self.config.sequence_parallel:
            group = self.pg_collection.tp
            padding = padding.chunk(group.size())[group.rank()]
        return embedded.masked_fill(padding, 0)

    def _postprocess(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if kwargs.get("inference_context") is not None:
            return super()._postprocess(hidden_states, *args, **kwargs)
        return hidden_states

    def output_weight(self) -> torch.Tensor:
        """This rank's rows of the output matrix, [padded_vocab / TP, hidden]; last stage only."""
        if self.share_embeddings_and_output_weights:
            return self.shared_embedding_or_output_weight()
        return self.output_layer.weight


def build_model_chunks(hf_config: PretrainedConfig, config: TransformerConfig) -> list[PolicyModel]:
    """Builds this rank's part of the model, weights not yet loaded.

    Args:
        hf_config: The model's own configuration.
        config: The megatron-core configuration made from it.

    Returns:
        One model chunk, or one per virtual pipeline stage.
    """
    virtual_stages = config.virtual_pipeline_model_parallel_size
    stages = range(virtual_stages) if virtual_stages else [None]
    return [_build_chunk(hf_config, config, vp_stage) for vp_stage in stages]


def build_empty_model(
    hf_config: PretrainedConfig, config: TransformerConfig, vocabulary_rows: int
) -> PolicyModel:
    """Builds the whole model of megatron-core's own layers without memory for its weights.

    Args:
        hf_config: The model's own configuration.
        config: Of one rank, with `use_cpu_initialization`.
        vocabulary_rows: Of the embedding and the output matrix, with padding.

    Returns:
        The model on the meta device.
    """
    with torch.device("meta"):
        return _chunk_with_plain_rotary(hf_config, config, None, vocabulary_rows, engine=False)


def _build_chunk(
    hf_config: PretrainedConfig, config: TransformerConfig, vp_stage: int | None
) -> PolicyModel:
    rows = padded_vocab_size(hf_config.vocab_size, config.tensor_model_parallel_size)
    model = _chunk_with_plain_rotary(hf_config, config, vp_stage, rows)
    family, embeddings = family_of(hf_config), []
    if model.pre_process and family.embedding_scale is not None:
        _scale_embeddings(model, family.embedding_scale)
    for kind, settings in family.rotary.items():
        scaled = rotary_inverse_frequencies(hf_config, kind)
        embeddings.append(_rotary_embedding(model, settings["rope_theta"], scaled))
    several = len(embeddings) > 1
    model.rotary_pos_emb = StackedRotaryEmbedding(*embeddings) if several else embeddings[0]
    return model


class StackedRotaryEmbedding(torch.nn.Module):
    """The rotary embeddings of a model whose layers have different ones."""

    def __init__(self, *embeddings: RotaryEmbedding) -> None:
        super().__init__()
        self.embeddings = torch.nn.ModuleList(embeddings)
        self.get_rotary_seq_len = embeddings[0].get_rotary_seq_len

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """megatron-core's arguments; [embeddings, s, 1, 1, head_dim]."""
        return torch.stack([embedding(*args, **kwargs) for embedding in self.embeddings])


def _rotary_embedding(
    model: PolicyModel, base: float, scaled: torch.Tensor | None
) -> RotaryEmbedding:
    """A rotary embedding like the model's, of another base or of scaled frequencies."""
    config = model.config
    embedding = RotaryEmbedding(
        kv_channels=config.kv_channels,
        rotary_percent=1.0,
        rotary_base=base,
        use_cpu_initialization=config.use_cpu_initialization,
        cp_group=model.pg_collection.cp,
    )
    if scaled is not None:
        embedding.inv_freq = scaled.to(embedding.inv_freq.device)
    return embedding


def _scale_embeddings(model: PolicyModel, factor: float) -> None:
    """Multiplies the output of the embedding by a factor in the weights' type, as transformers."""
    rounded = torch.tensor(factor, dtype=model.config.params_dtype).item()
    model.embedding.register_forward_hook(lambda _, __, output: output * rounded)


def _chunk_with_plain_rotary(
    hf_config: PretrainedConfig,
    config: TransformerConfig,
    vp_stage: int | None,
    vocabulary_rows: int,
    *,
    engine: bool | None = None,
) -> PolicyModel:
    """A chunk with megatron-core's default rotary embedding."""
    family = family_of(hf_config)
    placement = {"ignore_virtual": vp_stage is None, "vp_stage": vp_stage}
    model = PolicyModel(
        config=config,
        transformer_layer_spec=decoder_spec(
            config, vp_stage, norms_after_blocks=family.norms_after_blocks, engine=engine
        ),
        vocab_size=vocabulary_rows,
        max_sequence_length=hf_config.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(**placement),
        post_process=parallel_state.is_pipeline_last_stage(**placement),
        position_embedding_type="rope",
        share_embeddings_and_output_weights=hf_config.tie_word_embeddings,
        vp_stage=vp_stage,
    )
    _mark_split_weights(model)
    return model


def _mark_split_weights(model: PolicyModel) -> None:
    """Says of each matrix that tensor-parallel ranks hold different parts, and of which dimension.

    megatron-core says so while it initialises weights, which `perform_initialization=False` skips.
    Unmarked, a matrix counts only on the first rank in the gradient norm, and is not put together
    when it is exported.
    """
    for module in model.modules():
        if isinstance(module, (VocabParallelEmbedding, ColumnParallelLinear)):
            dimension = 0
        elif isinstance(module, RowParallelLinear):
            dimension = 1
        else:
            continue
        if module.weight is not None and not hasattr(module.weight, "tensor_model_parallel"):
            set_tensor_model_parallel_attributes(module.weight, True, dimension, 1)
