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

    A tied output matrix has two names: vLLM on CPU keeps a packed copy of it that loading the
    embedding leaves as it was.

    Attributes:
        other_names: A second name of a tensor, by its first.
    """

    def __init__(self, policy: Policy) -> None:
        """
        Args:
            policy: The policy whose current weights each iteration streams.
        """
        self._policy = policy
        tied = policy.hf_config.tie_word_embeddings
        self.other_names: dict[str, str] = {_EMBEDDING: _OUTPUT} if tied else {}

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """One export, of each tensor under all of its names. Collective like `once`."""
        for name, tensor in self.once():
            yield name, tensor
            if name in self.other_names:
                yield self.other_names[name], tensor

    def once(self) -> Iterator[tuple[str, torch.Tensor]]:
        """One export, of each tensor under its first name.

        Collective like `ExportPlan.export`: all ranks must iterate to the end.
        """
        return self._plan.export()

    @cached_property
    def tensors(self) -> list[TensorFacts]:
        """What an iteration yields, in its order. The first use is collective."""
        found = []
        for facts in self._plan.tensors:
            found.append(facts)
            if facts.name in self.other_names:
                found.append(replace(facts, name=self.other_names[facts.name]))
        return found

    @cached_property
    def num_bytes(self) -> int:
        """Size of all tensors."""
        return sum(facts.num_bytes for facts in self.tensors)

    @cached_property
    def _plan(self) -> ExportPlan:
        return ExportPlan(self._policy.modules, self._policy.hf_config)
