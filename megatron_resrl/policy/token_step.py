"""One new token of each row through a chunk's layers, with little work of the host for each.

megatron-core's modules make the same products. Around them they do, for every layer and token,
what training, other layouts and other devices need, and on a CPU this takes longer than the
products of a small batch. Here the operations of a layer stand one after the other, in the order of
the modules: the results are the same bits.

Shapes: B rows, H hidden size, G key-value heads of this rank, n query heads of each, d head size, L
positions of the cache.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.common.embeddings.yarn_rotary_pos_embedding import (
    _yarn_get_concentration_factor_from_config as rotary_factor,
)
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.transformer_layer import TransformerLayer
from megatron.core.transformer.utils import is_layer_window_attention
from torch import Tensor

from megatron_resrl.policy.attention import RotatedCacheAttention, SdpaCoreAttention
from megatron_resrl.policy.gpt import PolicyModel
from megatron_resrl.policy.layer_spec import RmsNorm
from megatron_resrl.policy.rotary import rotate_token

KeyValueMemory = dict[int, tuple[Tensor, Tensor]]
"""Number of a layer -> its keys, which are rotated, and values, [L, B, G, d] each."""


class TokenStep:
    """A chunk in evaluation mode whose every layer is a `_LayerStep`."""

    def __init__(self, module: PolicyModel, positions: int) -> None:
        """
        Args:
            module: One for which `takes` is true.
            positions: L.
        """
        self.module = module
        self._layers = [_LayerStep(layer) for layer in module.decoder.layers]
        # [positions, 1, 1, d] angles, or [2, ...] where layers with a window have others.
        angles = module.rotary_pos_emb(positions)
        factor, dtype = rotary_factor(module.config), module.config.params_dtype
        self._cos, self._sin = (
            (f(angles).squeeze(-2) * factor).to(dtype) for f in (torch.cos, torch.sin)
        )

    @staticmethod
    def takes(module: PolicyModel) -> bool:
        """Whether the chunk's layers have the operations of a `_LayerStep`, and are on a CPU."""
        on_cpu = next(module.parameters()).device.type == "cpu"
        return on_cpu and all(map(_is_plain, module.decoder.layers))

    def __call__(
        self,
        tokens: Tensor,
        received: Tensor | None,
        memory: KeyValueMemory,
        position: int,
        allowed: Tensor | None,
    ) -> Tensor:
        """Logits of the next token [B, V] on the last stage, else hidden states [1, B, H].

        Args:
            tokens: [B] int64.
            received: [1, B, H] from the stage before; None on the first.
            memory: Gets the token's keys and values.
            position: Of the token, the same in every row.
            allowed: [B, 1, 1, L] bool, False at padding; None: no row is padded.
        """
        module = self.module
        if received is None:
            places = torch.full_like(tokens, position)[:, None]
            received = module.embedding(input_ids=tokens[:, None], position_ids=places)
        hidden = received[0]
        seen = None if allowed is None else allowed[..., : position + 1]
        cos, sin = self._cos[..., position, :, :], self._sin[..., position, :, :]
        for layer in self._layers:
            hidden = layer(hidden, cos, sin, memory, position, seen)
        if module.decoder.final_layernorm is not None:
            hidden = module.decoder.final_layernorm(hidden)
        if not module.post_process:
            return hidden[None]
        logits, _ = module.output_layer(
            hidden[None], weight=module.output_weight(), runtime_gather_output=True
        )
        return logits[0]


class _LayerStep:
    """One layer, its matrices and sizes at hand."""

    def __init__(self, layer: TransformerLayer) -> None:
        attention, config = layer.self_attention, layer.config
        self._layer = layer
        self._qkv = attention.linear_qkv
        self._norms = attention.q_layernorm, attention.k_layernorm
        self._groups = attention.num_query_groups_per_partition
        self._heads = attention.num_attention_heads_per_partition // self._groups
        self._size = attention.hidden_size_per_attention_head
        self._norm_weight = self._weight_of_both_norms()
        self._scale = attention.core_attention.softmax_scale
        self._tokens_before = attention.core_attention.tokens_before
        self._windowed = is_layer_window_attention(
            config.window_size, config.window_attn_skip_freq, layer.layer_number
        )
        self._activation = config.activation_func

    def __call__(
        self,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        memory: KeyValueMemory,
        position: int,
        seen: Tensor | None,
    ) -> Tensor:
        """[B, H] -> [B, H]; cos and sin are [1, d] or [2, 1, d], `seen` [B, 1, 1, position + 1]."""
        layer = self._layer
        if cos.dim() > 2:
            cos, sin = cos[int(self._windowed)], sin[int(self._windowed)]
        query, key, value = self._projected(layer.input_layernorm(hidden), cos, sin)
        keys, values = memory[layer.layer_number]
        keys[position], values[position] = key, value
        before = self._tokens_before
        first = 0 if before is None else max(0, position - before)
        # The heads of a group attend to the same keys, like queries of one head.
        key, value = (each[first : position + 1].permute(1, 2, 0, 3) for each in (keys, values))
        attended = F.scaled_dot_product_attention(
            *(query, key, value),
            attn_mask=None if seen is None else seen[..., first:],
            scale=self._scale,
        )
        projection = layer.self_attention.linear_proj
        hidden = _row_product(projection, attended.reshape(len(hidden), -1)).add_(hidden)
        return self._mlp(layer.pre_mlp_layernorm(hidden)).add_(hidden)

    def _projected(self, states: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, H] -> rotated queries [B, G, n, d] and keys [B, G, d], and values [B, G, d]."""
        mixed = torch.mm(states, self._qkv.weight.T)
        if self._qkv.bias is not None:
            mixed = mixed + self._qkv.bias
        heads = self._heads
        mixed = mixed.view(len(states), self._groups, heads + 2, self._size)
        value = mixed[:, :, heads + 1]
        query_norm, key_norm = self._norms
        both = mixed[:, :, : heads + 1]
        if self._norm_weight is not None:
            both = F.rms_norm(both, (self._size,), eps=query_norm.eps).mul_(self._norm_weight)
        elif query_norm is not None or key_norm is not None:
            query, key = both[:, :, :heads], both[:, :, heads]
            query = query if query_norm is None else query_norm(query)
            key = key if key_norm is None else key_norm(key)
            return rotate_token(query, cos, sin), rotate_token(key, cos, sin), value
        rotated = rotate_token(both, cos, sin)
        return rotated[:, :, :heads], rotated[:, :, heads], value

    def _weight_of_both_norms(self) -> Tensor | None:
        """[n + 1, d] weights by which one norm of queries and key is those of the two modules.

        None: there are no such two, or they round only after the weights.
        """
        if not all(isinstance(each, RmsNorm) and each.plain for each in self._norms):
            return None
        query, key = (each.weight.detach() for each in self._norms)
        if query.dtype != torch.float32:
            return None
        return torch.cat([query.expand(self._heads, -1), key[None]])

    def _mlp(self, states: Tensor) -> Tensor:
        """[B, H] -> [B, H]."""
        mlp = self._layer.mlp
        if not isinstance(mlp, MLP):  # Experts.
            return mlp(states[None])[0][0]
        gate, linear = torch.mm(states, mlp.linear_fc1.weight.T).chunk(2, dim=-1)
        return _row_product(mlp.linear_fc2, self._activation(gate) * linear)


def _row_product(linear: Any, states: Tensor) -> Tensor:
    """The product of a row-parallel matrix, summed over tensor-parallel ranks, and its norm."""
    product = torch.mm(states, linear.weight.T)
    if linear.tp_group.size() > 1:
        product = reduce_from_tensor_model_parallel_region(product, group=linear.tp_group)
    after = getattr(linear, "post_layernorm", None)
    return product if after is None else after(product)


def _is_plain(layer: TransformerLayer) -> bool:
    """Whether a layer is made of the operations above."""
    attention, config, mlp = layer.self_attention, layer.config, layer.mlp
    dense = isinstance(mlp, MLP)
    column = [attention.linear_qkv, *([mlp.linear_fc1] if dense else [])]
    row = [attention.linear_proj, *([mlp.linear_fc2] if dense else [])]
    return (
        isinstance(attention, RotatedCacheAttention)
        and isinstance(attention.core_attention, SdpaCoreAttention)
        and isinstance(layer.cross_attention, IdentityOp)
        and all(isinstance(each, ColumnParallelLinear) for each in column)
        and all(isinstance(each, RowParallelLinear) and each.bias is None for each in row)
        and not (dense and mlp.linear_fc1.bias is not None)
        and config.gated_linear_unit
        and not config.bias_activation_fusion
        and config.activation_func_clamp_value is None
        and config.glu_linear_offset == 0.0
        and not config.attention_output_gate
        and not config.no_rope_freq
        # Fewer key-value heads than ranks are gathered and cut.
        and config.num_query_groups >= config.tensor_model_parallel_size
    )
