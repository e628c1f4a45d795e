"""The policy's weights as vLLM loads them."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from megatron_resrl.policy.policy import Policy
from megatron_resrl.weights.hugging_face import export_weights

_EMBEDDING = "model.embed_tokens.weight"
_OUTPUT = "lm_head.weight"


def weights_for_vllm(policy: Policy) -> Iterator[tuple[str, torch.Tensor]]:
    """Streams Hugging Face tensors, one at a time, on every rank.

    Collective like `export_weights`: all ranks must iterate to the end. A tied output matrix comes
    twice: vLLM on CPU keeps a packed copy of it that loading the embedding leaves as it was.
    """
    tied = policy.hf_config.tie_word_embeddings
    for name, tensor in export_weights(policy.modules, policy.hf_config):
        yield name, tensor
        if tied and name == _EMBEDDING:
            yield _OUTPUT, tensor
