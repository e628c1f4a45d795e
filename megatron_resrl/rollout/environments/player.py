"""From prompts to responses, in one turn or in several: what the loop and evaluations call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from megatron_resrl.config.schema import Recipe
from megatron_resrl.data.prompts import Prompt
from megatron_resrl.rollout.engine import OnGroup, PendingRollout, RolloutEngine, SamplingParams
from megatron_resrl.rollout.environments.chat import ObservationTokens
from megatron_resrl.rollout.environments.episodes import Episodes
from megatron_resrl.rollout.environments.registry import get_environment


class Player(Protocol):
    """Answers prompts."""

    def begin(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingParams,
        *,
        seed: Sequence[int],
        indices: Sequence[int] | None = None,
        on_group: OnGroup | None = None,
    ) -> PendingRollout:
        """Starts `sampling.n` responses for each prompt. Collective; see `RolloutEngine.begin`.

        `sampling.max_new_tokens` bounds all turns of a response together.
        """
        ...


class SingleTurn:
    """A response is one turn: what the engine gives."""

    def __init__(self, engine: RolloutEngine) -> None:
        self._engine = engine

    def begin(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingParams,
        *,
        seed: Sequence[int],
        indices: Sequence[int] | None = None,
        on_group: OnGroup | None = None,
    ) -> PendingRollout:
        """See `Player.begin`."""
        token_ids = [prompt.token_ids for prompt in prompts]
        return self._engine.begin(
            token_ids, sampling, seed=seed, indices=indices, on_group=on_group
        )


def player_of(recipe: Recipe, engine: RolloutEngine, tokenizer: Any) -> Player:
    """The player that a recipe asks for.

    Raises:
        InputError: Its environment cannot be used, or not with this chat template.
    """
    settings = recipe.rollout
    if settings.environment is None:
        return SingleTurn(engine)
    make = get_environment(settings.environment, settings.environment_options)
    return Episodes(
        engine,
        make,
        tokenizer,
        ObservationTokens(
            tokenizer,
            make().role,
            apply_chat_template=recipe.data.apply_chat_template,
            chat_template_kwargs=recipe.data.chat_template_kwargs,
        ),
        name=settings.environment,
        max_turns=settings.max_turns,
        timeout_s=recipe.reward.timeout_s,
    )
