"""The policy's weights as vLLM loads them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

import torch

from megatron_resrl.policy.policy import Policy
from megatron_resrl.weights.export import ExportPlan, TensorFacts

_EMBEDDING = "model.embed_tokens.weight"
_OUTPUT = "lm_head.weight"


class ServedWeights:
    """Streams Hugging Face tensors, one at a time, on every rank; planned once.

    A tied output matrix comes twice: vLLM on CPU keeps a packed copy of it that loading the
    embedding leaves as it was.
    """

    def __init__(self, policy: Policy) -> None:
        """
        Args:
            policy: The policy whose current weights each iteration streams.
        """
        self._policy = policy

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """One export. Collective like `ExportPlan.export`: all ranks must iterate to the end."""
        for name, tensor in self._plan.export():
            yield name, tensor
            if name == self._sent_twice:
                yield _OUTPUT, tensor

    @cached_property
    def tensors(self) -> list[TensorFacts]:
        """What an iteration yields, in its order. The first use is collective."""
        found = []
        for facts in self._plan.tensors:
            found.append(facts)
            if facts.name == self._sent_twice:
                found.append(replace(facts, name=_OUTPUT))
        return found

    @cached_property
    def num_bytes(self) -> int:
        """Size of all tensors."""
        return sum(facts.num_bytes for facts in self.tensors)

    @property
    def _sent_twice(self) -> str | None:
        return _EMBEDDING if self._policy.hf_config.tie_word_embeddings else None

    @cached_property
    def _plan(self) -> ExportPlan:
        return ExportPlan(self._policy.modules, self._policy.hf_config)
