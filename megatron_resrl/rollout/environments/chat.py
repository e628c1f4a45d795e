"""What a chat template puts between a turn of the policy and its next: an observation's tokens.

The policy's own tokens are never decoded and encoded again. A conversation that ends with a marker
in the policy's place and the observation after it is rendered as text; what follows the marker is
encoded and appended to the tokens as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jinja2

from megatron_resrl.errors import InputError

_MARKER = "the-turn-of-the-policy-ends-here"


class ObservationTokens:
    """Encodes observations for one tokenizer and one role."""

    def __init__(
        self,
        tokenizer: Any,
        role: str,
        *,
        apply_chat_template: bool = True,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """
        Args:
            tokenizer: A Hugging Face tokenizer.
            role: Of the observations' messages.
            apply_chat_template: False: append the observation's text as it is.
            chat_template_kwargs: Passed to the template.

        Raises:
            InputError: The template cannot be continued.
        """
        self._tokenizer = tokenizer
        self._role = role
        self._templated = apply_chat_template
        self._kwargs = chat_template_kwargs or {}
        self._special = sorted(tokenizer.all_special_tokens, key=len, reverse=True)
        probe = "an observation"
        if probe not in self._between(probe):
            raise self._refusal("leaves the text of an observation out")

    def encode(self, text: str, turn: Sequence[int]) -> tuple[int, ...]:
        """The tokens from the end of a turn to the beginning of the next.

        Args:
            text: The observation. Special tokens written in it are taken out: a tool's result must
                not be able to end its own message.
            turn: The turn's tokens, stop token included.

        Returns:
            Token ids. The template's end of the turn is not repeated where the policy drew it.
        """
        ids = self._tokenizer(self._between(self.plain(text)), add_special_tokens=False)[
            "input_ids"
        ]
        if self._templated and turn and turn[-1] in ids:
            place = ids.index(turn[-1])
            # Some templates put a space before the end-of-turn token.
            if not self._tokenizer.decode(ids[:place]).strip():
                ids = ids[place + 1 :]
        return tuple(ids)

    def plain(self, text: str) -> str:
        """What an environment says, without special tokens written in it."""
        for special in self._special:
            text = text.replace(special, "")
        return text

    def _between(self, text: str) -> str:
        """The rendered conversation from the end of the policy's turn on."""
        if not self._templated:
            return text
        messages = [
            {"role": "user", "content": "question"},
            {"role": "assistant", "content": _MARKER},
            {"role": self._role, "content": text},
        ]
        try:
            rendered = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **self._kwargs
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise self._refusal(f"refuses a message after an answer ({error})") from error
        if rendered.count(_MARKER) != 1:
            raise self._refusal("does not show an earlier answer exactly once")
        return rendered.partition(_MARKER)[2]

    def _refusal(self, problem: str) -> InputError:
        return InputError(
            f"rollout.environment: the chat template of {self._tokenizer.name_or_path!r} {problem},"
            f" with role {self._role!r}; use an environment of another role, or a tokenizer "
            "(model.tokenizer_path) whose template takes it"
        )
