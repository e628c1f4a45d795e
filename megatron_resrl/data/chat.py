"""Questions through a tokenizer's chat template."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import jinja2
import jinja2.meta
import jinja2.sandbox

from megatron_resrl.data.records import PromptRecord
from megatron_resrl.errors import InputError, SettingError, closest

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_FOREIGN_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
_GENERATION = re.compile(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}")
"""transformers' own block in a template: what the assistant writes."""
_MARKER = "here-stands-a-message"
_OURS = {"tokenize", "add_generation_prompt", "continue_final_message"}
_SUPPLIED = _OURS | {"messages", "raise_exception", "strftime_now"}
"""What a template is given in any case."""


class ChatRenderer:
    """Formats questions with the chat template of a tokenizer.

    Args:
        tokenizer: A Hugging Face tokenizer.
        template_arguments: `data.chat_template_kwargs`.
        continue_final_message: Let the response continue a last message of the assistant's.

    Raises:
        InputError: There is no template, or it does not know an argument.
    """

    def __init__(
        self, tokenizer: Any, template_arguments: dict[str, Any], *, continue_final_message: bool
    ) -> None:
        if not tokenizer.chat_template:
            raise InputError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no chat template: use the "
                "tokenizer of an instruct model (model.tokenizer_path), or set "
                "data.apply_chat_template to false"
            )
        self._tokenizer = tokenizer
        self._arguments = template_arguments
        self._continue = continue_final_message
        self._shown: set[tuple[str, bool]] = set()
        self._check_arguments()

    def render(self, record: PromptRecord) -> str:
        """The text up to where the response begins.

        Raises:
            InputError: The template cannot format it, or would leave a message or the tools out;
                or its last message is the assistant's and is not to be continued.
        """
        continued = record.messages[-1]["role"] == "assistant"
        if continued and not self._continue:
            raise InputError(
                f"{record}: its last message is the assistant's; take it out if it is an answer "
                "that was left in, or set data.continue_final_message to true if responses are to "
                "continue it"
            )
        source = self.source(record)
        for message in record.messages:
            self._check_role(record, message["role"], source)
        if record.tools and "tools" not in _variables(source):
            raise InputError(
                f"{record}: it has tools, which {self._name} does not show; use a tokenizer "
                "(model.tokenizer_path) whose template does, or set data.tools_key to null"
            )
        text = self._apply(record, record.messages, continued)
        for number, message in enumerate(record.messages):
            self._check_shown(record, number, message, continued)
        return text

    def conversation(self, record: PromptRecord, messages: int, *, generation_prompt: bool) -> str:
        """The text of the first messages of a conversation.

        Args:
            record: The conversation.
            messages: How many of its messages.
            generation_prompt: Go on to where the assistant's next message begins.

        Raises:
            InputError: The template cannot format them.
        """
        shown = record.messages[:messages]
        return self._apply(record, shown, generation_prompt=generation_prompt)

    def require_known_roles(self, record: PromptRecord) -> None:
        """Refuses a message whose role the template does not know.

        Raises:
            InputError: Names the role, and what was probably meant.
        """
        for message in record.messages:
            self._check_role(record, message["role"], self.source(record))

    def marks_turns(self, record: PromptRecord) -> bool:
        """Whether the template says where the assistant speaks, by its block `generation`."""
        return _GENERATION.search(self.source(record)) is not None

    @property
    def _name(self) -> str:
        return f"the chat template of {self._tokenizer.name_or_path!r}"

    def _apply(
        self,
        record: PromptRecord,
        messages: list[dict[str, Any]],
        continued: bool = False,
        *,
        generation_prompt: bool = True,
    ) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=generation_prompt and not continued,
                continue_final_message=continued,
                **self.template_arguments(record),
            )
        except Exception as error:  # A template is a program, which may raise anything.
            said = str(error)
            if not isinstance(error, jinja2.TemplateError):
                said = f"{type(error).__name__}: {said}"
            raise InputError(
                f"{self._name} refuses {record}, with roles "
                f"{', '.join(message['role'] for message in messages)}: {said}"
            ) from error

    def template_arguments(self, record: PromptRecord) -> dict[str, Any]:
        """What the template is given beside the messages."""
        return self._arguments | ({"tools": record.tools} if record.tools else {})

    def _check_arguments(self) -> None:
        if taken := _OURS & self._arguments.keys():
            problem = f"{', '.join(sorted(taken))} cannot be set"
            raise self._argument_error(problem, "leave it out; the trainer sets it")
        templates = self._tokenizer.chat_template
        sources = templates.values() if isinstance(templates, dict) else [templates]
        known = set().union(*(self._known(source) for source in sources))
        known -= _SUPPLIED | self._tokenizer.special_tokens_map.keys()
        for name in self._arguments:
            if name not in known:
                fix = f"it knows {', '.join(sorted(known)) or 'none'}"
                if ":" in str(name):
                    fix += "; put a blank after the colon"
                elif near := closest(str(name), known):
                    fix += f"; did you mean {near}?"
                raise self._argument_error(f"{self._name} does not know {name!r}", fix)

    def _argument_error(self, problem: str, fix: str) -> SettingError:
        return SettingError("data.chat_template_kwargs", self._arguments, problem, fix)

    def _known(self, source: str) -> frozenset[str]:
        try:
            return _variables(source)
        except jinja2.TemplateSyntaxError as error:
            raise InputError(f"{self._name} is no valid template: {error}") from error

    def source(self, record: PromptRecord) -> str:
        """The template that formats a record."""
        templates = self._tokenizer.chat_template
        if not isinstance(templates, dict):
            return templates
        try:
            return self._tokenizer.get_chat_template(tools=record.tools)
        except ValueError as error:
            raise InputError(f"{self._name}: {error}") from error

    def _check_role(self, record: PromptRecord, role: str, source: str) -> None:
        if role in _ROLES or f"'{role}'" in source or f'"{role}"' in source:
            return
        meant = _FOREIGN_ROLES.get(role) or closest(role, _ROLES)
        hint = f"did you mean {meant}?" if meant else f"roles are {', '.join(_ROLES)}"
        raise InputError(f"{record}: {self._name} does not know the role {role!r}; {hint}")

    def _check_shown(
        self, record: PromptRecord, number: int, message: dict[str, Any], continued: bool
    ) -> None:
        """Templates pass over roles that they do not know without a word."""
        case = message["role"], bool(record.tools)
        if message["role"] == "assistant" or case in self._shown:
            return
        self._shown.add(case)
        messages = list(record.messages)
        messages[number] = message | {"content": _MARKER}
        try:
            text = self._apply(record, messages, continued)
        except InputError:
            return  # It reads this role's content, and wants more of it than the marker.
        if _MARKER not in text:
            raise InputError(
                f"{record}: {self._name} leaves messages with the role {message['role']!r} out; "
                "use another role, or a tokenizer (model.tokenizer_path) whose template shows it"
            )


@functools.lru_cache(maxsize=8)
def _variables(source: str) -> frozenset[str]:
    """Names that a template does not set itself."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        extensions=["jinja2.ext.loopcontrols"]
    )
    plain = _GENERATION.sub("", source)
    names = jinja2.meta.find_undeclared_variables(environment.parse(plain))
    return frozenset(names - environment.globals.keys())


def without_double_beginning(
    token_ids: Sequence[int], beginnings: Sequence[tuple[int, ...]]
) -> list[int]:
    """Token ids with no more than one beginning of sequence.

    Args:
        token_ids: Of a prompt.
        beginnings: What may stand there once; the empty one means nothing.
    """
    ids = tuple(token_ids)
    for beginning in filter(None, beginnings):
        size = len(beginning)
        while ids[:size] == beginning == ids[size : 2 * size]:
            ids = ids[size:]
    return list(ids)
