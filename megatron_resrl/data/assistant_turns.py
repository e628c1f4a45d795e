"""A conversation as token ids, and which of them the assistant wrote.

The whole text is tokenized once. What the assistant wrote is found in the text, by where the chat
template lets each turn begin and end, and from there in the tokens by their places in the text:
no token is decoded and encoded again.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from megatron_resrl.data.chat import ChatRenderer, without_double_beginning
from megatron_resrl.data.conversations import Conversation
from megatron_resrl.data.records import PromptRecord
from megatron_resrl.errors import InputError


class MarkedTokens(NamedTuple):
    """A sequence, and which of its tokens are learned."""

    token_ids: Sequence[int]
    targets: Sequence[bool]
    """As many; never the first, which nothing predicts."""


@dataclass(frozen=True)
class _Rendering:
    """A conversation up to one of the assistant's messages, as the template writes it."""

    messages: int
    """How many."""
    text: str
    ends: dict[int, int]
    """Message to learn -> the character behind it, ascending."""


class TurnTokens:
    """Finds the assistant's turns with one tokenizer and its chat template.

    Args:
        tokenizer: A fast Hugging Face tokenizer.
        template_arguments: `data.chat_template_kwargs`.
        vocab_size: Rows of the model's embedding, which has to know every token.
    """

    def __init__(self, tokenizer: Any, template_arguments: dict[str, Any], vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._arguments = template_arguments
        self._vocab_size = vocab_size
        self._special = frozenset(tokenizer.all_special_ids)

    @functools.cached_property
    def _chat(self) -> ChatRenderer:
        """Made for the first messages: exact tokens need no template."""
        name = self._tokenizer.name_or_path
        if not self._tokenizer.chat_template:
            raise InputError(
                f"the tokenizer of {name!r} has no chat template: use the tokenizer of an instruct "
                "model (model.tokenizer_path)"
            )
        if not self._tokenizer.is_fast:
            raise InputError(
                f"the tokenizer of {name!r} does not say where in a text its tokens are; use one "
                "with a tokenizer.json"
            )
        return ChatRenderer(self._tokenizer, self._arguments, continue_final_message=False)

    def sequences(self, conversation: Conversation) -> list[MarkedTokens]:
        """What the model learns from a conversation.

        Usually one sequence. A template that writes an earlier turn otherwise than the last one,
        as Qwen3's leaves out the thinking of earlier turns, gives one for each way, in which each
        turn stands as the model is to write it; every turn is learned once.

        Returns:
            Sequences whose targets are the assistant's own tokens and the one that ends its turn.

        Raises:
            InputError: There is no template, it does not know an argument, cannot format the
                conversation, or does not show where the assistant speaks; the tokenizer cannot say
                where in the text a token is; or the model does not have one of its tokens.
        """
        record = conversation.record
        if conversation.token_ids is not None:
            tokens = conversation.token_ids
            self._require_known(tokens.prompt + tokens.response, record)
            targets = [False] * len(tokens.prompt) + list(tokens.response_mask)
            return [MarkedTokens(tokens.prompt + tokens.response, targets)]
        self._chat.require_known_roles(record)
        return [
            self._sequence(record, rendering)
            for rendering in self._renderings(record, conversation.learned)
        ]

    def _renderings(self, record: PromptRecord, learned: Sequence[int]) -> list[_Rendering]:
        """As few as there can be, so that each message stands in one as the model writes it."""
        found: list[_Rendering] = []
        for number in reversed(learned):
            text = self._chat.conversation(record, number + 1, generation_prompt=False)
            if found and found[-1].text.startswith(text):
                found[-1].ends[number] = len(text)
            else:
                found.append(_Rendering(number + 1, text, {number: len(text)}))
        return found

    def _sequence(self, record: PromptRecord, rendering: _Rendering) -> MarkedTokens:
        encoded = self._tokenizer(
            rendering.text, add_special_tokens=False, return_offsets_mapping=True
        )
        ids, places = encoded["input_ids"], encoded["offset_mapping"]
        self._require_known(ids, record)
        if self._chat.marks_turns(record):
            turns = self._marked(record, rendering)
        else:
            turns = [
                self._within((self._begin(record, number, rendering.text), end), ids, places)
                for number, end in rendering.ends.items()
            ]
        if not all(turns):
            raise InputError(
                f"{record}: the template writes no token for a message of the assistant's; leave "
                "the row out"
            )
        mask = [False] * len(ids)
        for token in itertools.chain.from_iterable(turns):
            mask[token] = True
        # What follows the last target teaches nothing.
        last = max(token for token, target in enumerate(mask) if target)
        ids, mask = ids[: last + 1], mask[: last + 1]
        # A template writes the beginning of the sequence itself, messages may begin with one, too.
        bos = self._tokenizer.bos_token_id
        kept = without_double_beginning(ids, [] if bos is None else [(bos,)])
        return MarkedTokens(kept, mask[len(ids) - len(kept) :])

    def _begin(self, record: PromptRecord, number: int, text: str) -> int:
        """The character where an assistant's message begins: behind its generation prompt."""
        prompt = self._chat.conversation(record, number, generation_prompt=True)
        if not text.startswith(prompt):
            raise InputError(
                f"{record}: the chat template of {self._tokenizer.name_or_path!r} does not show "
                f"where message {number}, the assistant's, begins: the message does not go on from "
                "its generation prompt; use a template that marks the assistant's turns with "
                "{% generation %}"
            )
        return len(prompt)

    def _marked(self, record: PromptRecord, rendering: _Rendering) -> list[range]:
        """The learned messages' tokens, by the template's own marks."""
        shown = record.messages[: rendering.messages]
        marks = self._tokenizer.apply_chat_template(
            shown,
            return_dict=True,
            return_assistant_tokens_mask=True,
            **self._chat.template_arguments(record),
        )["assistant_masks"]
        turns = [
            range(run[0], run[-1] + 1)
            for marked, group in itertools.groupby(range(len(marks)), key=lambda n: marks[n])
            if marked and (run := list(group))
        ]
        speaking = [n for n, message in enumerate(shown) if message["role"] == "assistant"]
        if len(turns) != len(speaking):
            raise InputError(
                f"{record}: the chat template of {self._tokenizer.name_or_path!r} marks "
                f"{len(turns)} turns of the assistant with {{% generation %}}, and there are "
                f"{len(speaking)}; mark each once"
            )
        return [turns[speaking.index(number)] for number in rendering.ends]

    def _within(
        self, span: tuple[int, int], ids: Sequence[int], places: Sequence[tuple[int, int]]
    ) -> range:
        """The tokens of a turn, up to the one that ends it.

        A token that begins before the turn is part of what the model reads, not of what it writes.
        What a template puts behind the special token that ends a turn, such as the end of a line,
        the model does not write either.
        """
        begin, end = span
        inside = [
            token for token, (left, right) in enumerate(places) if begin <= left < right <= end
        ]
        special = [token for token in inside if ids[token] in self._special]
        if special and self._is_blank(ids[special[-1] + 1 : inside[-1] + 1]):
            return range(inside[0], special[-1] + 1)
        return range(inside[0], inside[-1] + 1) if inside else range(0)

    def _is_blank(self, ids: Sequence[int]) -> bool:
        return not self._tokenizer.decode(ids).strip()

    def _require_known(self, ids: Sequence[int], record: PromptRecord) -> None:
        if max(ids) >= self._vocab_size:
            raise InputError(
                f"{record}: it has the token id {max(ids)}, and the model's vocab_size is "
                f"{self._vocab_size}; use the tokenizer of this model, or resize its embedding"
            )
