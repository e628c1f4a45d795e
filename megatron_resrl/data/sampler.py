"""Which prompts a step uses."""

from __future__ import annotations

from typing import Any

import numpy as np

from megatron_resrl.errors import InputError


class PromptSampler:
    """Deals prompts in batches, epoch after epoch, each in an order of its own.

    An epoch's order depends on (seed, epoch) alone, so that the position is all that has to be
    saved. What is left of an epoch when it is too short for a batch begins the next batch, and
    the next epoch completes it: every prompt is used once per epoch.

    Args:
        num_prompts: Size of the dataset.
        batch_size: Prompts per batch.
        seed: Keys the orders.
        shuffle: False: in the order of the dataset.
    """

    def __init__(self, num_prompts: int, batch_size: int, seed: int, shuffle: bool = True) -> None:
        for name, value, least in (
            ("num_prompts", num_prompts, 1),
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
        ):
            if value < least:
                raise ValueError(f"{name} = {value}: give at least {least}")
        self._dataset = {"num_prompts": num_prompts, "seed": seed, "shuffle": shuffle}
        self._batch_size = batch_size
        self._consumed = 0
        self._ordered_epoch, self._order = -1, np.empty(0, dtype=np.int64)

    @property
    def epoch(self) -> int:
        """Number of complete epochs dealt."""
        return self._consumed // self._dataset["num_prompts"]

    @property
    def epochs(self) -> float:
        """How often the dataset has been dealt."""
        return self._consumed / self._dataset["num_prompts"]

    def next_batch(self) -> list[int]:
        """Indices of the next `batch_size` prompts; see `draw`."""
        return self.draw(self._batch_size)

    def draw(self, count: int) -> list[int]:
        """Indices of the next `count` prompts.

        At the border of two epochs, and always when `count` is larger than the dataset, a prompt
        may come twice.
        """
        num_prompts = self._dataset["num_prompts"]
        batch: list[int] = []
        while len(batch) < count:
            offset = self._consumed % num_prompts
            part = self._order_of(self.epoch)[offset : offset + count - len(batch)]
            batch += part.tolist()
            self._consumed += len(part)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The position, and what it is a position in."""
        return {"consumed": self._consumed, **self._dataset}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where another sampler stopped. The batch size may differ.

        Raises:
            InputError: The state is of another dataset, seed or order.
        """
        for name, ours in self._dataset.items():
            if state[name] != ours:
                raise InputError(
                    f"the saved sampler has {name} = {state[name]}, this run {ours}: resume with "
                    "the same data and seed, or start a new run in another output_dir"
                )
        self._consumed = state["consumed"]

    def _order_of(self, epoch: int) -> np.ndarray:
        if epoch != self._ordered_epoch:
            num_prompts, seed = self._dataset["num_prompts"], self._dataset["seed"]
            if self._dataset["shuffle"]:
                self._order = np.random.default_rng([seed, epoch]).permutation(num_prompts)
            else:
                self._order = np.arange(num_prompts)
            self._ordered_epoch = epoch
        return self._order
