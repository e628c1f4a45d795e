"""Which prompts come next; its position can be saved and resumed."""

from __future__ import annotations

from typing import Any

import numpy as np


class PromptSampler:
    """Endless batches of prompt indices, epoch by epoch.

    An epoch's order is keyed by (seed, epoch). A batch may span two epochs, so that every prompt
    is visited once per epoch.
    """

    def __init__(
        self, num_prompts: int, batch_size: int, seed: int, shuffle: bool = True
    ) -> None:
        """
        Args:
            num_prompts: Prompts of the data set.
            batch_size: Prompts per batch.
            seed: Of the run.
            shuffle: False: every epoch in file order.

        Raises:
            ValueError: There is no prompt, or no room in a batch.
        """
        if num_prompts < 1 or batch_size < 1:
            raise ValueError(
                f"cannot sample {batch_size} of {num_prompts} prompts; both must be positive"
            )
        self.num_prompts = num_prompts
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.consumed = 0
        self._order_of: tuple[int, list[int]] | None = None

    @property
    def epoch(self) -> int:
        """Epochs finished so far."""
        return self.consumed // self.num_prompts

    def next_batch(self) -> list[int]:
        """The next `batch_size` prompt indices."""
        batch = []
        for _ in range(self.batch_size):
            batch.append(self._order(self.epoch)[self.consumed % self.num_prompts])
            self.consumed += 1
        return batch

    def _order(self, epoch: int) -> list[int]:
        if self._order_of is None or self._order_of[0] != epoch:
            order = np.arange(self.num_prompts)
            if self.shuffle:
                np.random.default_rng([self.seed, epoch]).shuffle(order)
            self._order_of = (epoch, order.tolist())
        return self._order_of[1]

    def state_dict(self) -> dict[str, Any]:
        """Position and what it depends on."""
        return {
            "consumed": self.consumed,
            "num_prompts": self.num_prompts,
            "seed": self.seed,
            "shuffle": self.shuffle,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a saved position.

        Raises:
            ValueError: The data set, seed or shuffling differ from the saved run's.
        """
        for name in ("num_prompts", "seed", "shuffle"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"cannot resume the prompt order: {name} was {state[name]} when the "
                    f"checkpoint was saved and is {getattr(self, name)} now; use the same data "
                    "files and settings, or checkpoint.resume=never"
                )
        self.consumed = state["consumed"]
