"""Environments of Prime Intellect's library verifiers, played turn by turn without a server.

Its own loop (`MultiTurnEnv.rollout`, verifiers 0.3.1) asks a client for every turn; here the policy
takes the client's place, and the same hooks are called in the same order.
"""

from __future__ import annotations

import asyncio
import functools
import json
import re
import threading
from collections.abc import Coroutine, Iterator, Mapping
from typing import Any, Literal

from megatron_resrl.data.records import PromptRecord
from megatron_resrl.rollout.environments.environment import Observation
from megatron_resrl.rollout.environments.packages import MissingPackage, import_package

_OWN_LOOP = ("rollout", "get_model_response")
"""Methods that are replaced by environments that have programs or servers ask the model."""
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_loading = threading.Lock()
_environments: dict[str, Any] = {}
"""Id and options -> the environment of this process, which all its episodes share."""


class VerifiersEnvironment:
    """An episode of `verifiers.load_environment(id, **options)`: its rows, turns and rubric.

    The rubric is asked after every turn, since any may be the last. The columns `example` and
    `split` of a row say which of the environment's examples it is; `questions` writes such rows.
    """

    def __init__(self, id: str, options: Mapping[str, Any] | None = None) -> None:
        """
        Args:
            id: Of an installed environment, such as `wordle` or `owner/wordle`.
            options: Keyword arguments of its `load_environment`.

        Raises:
            ValueError: There is none, or it cannot be played turn by turn.
            MissingPackage: verifiers is not installed, or a version without such environments.
        """
        self._verifiers = _package()
        self._environment = _loaded(self._verifiers, id, dict(options or {}))
        self.role: Literal["tool", "user"] = "tool" if self._environment.tool_defs else "user"
        self._state: Any = None
        self._shown: list[Any] = []

    def reset(self, record: PromptRecord, seed: tuple[int, ...]) -> None:
        """Begins the example of the row; its prompt is in the row, and the seed is not used.

        Raises:
            ValueError: The row is not one of the environment's.
        """
        self.close()
        example = _example(self._environment, record)
        self._state = _wait(self._begun(example))
        self._shown = self._state["prompt"]
        asked = [_plain(message) for message in self._shown]
        if asked != [{key: each[key] for key in ("role", "content")} for each in record.messages]:
            raise ValueError(
                f"{record} does not ask what the environment asks in its place; write the file "
                "again with tools/verifiers_questions.py, and set no data.system_prompt"
            )

    def step(self, action: str) -> Observation:
        """See `Environment.step`."""
        return _wait(self._answer(action))

    def close(self) -> None:
        """Lets environment and rubric clean up."""
        if self._state is not None:
            state, self._state = self._state, None
            _wait(self._ended(state))

    async def _begun(self, example: dict[str, Any]) -> Any:
        environment = self._environment
        client = _no_server()
        state = await environment.init_state(example, client, "policy", {})
        if state["tool_defs"] and self.role != "tool":
            raise ValueError("its rows bring tools of their own, which are not supported")
        return await environment.setup_state(state) or state

    async def _answer(self, action: str) -> Observation:
        environment, state = self._environment, self._state
        response = self._response(action, bool(state["tool_defs"]), len(state["trajectory"]))
        await environment.add_model_response(state, self._shown, response)
        text = None
        if not await environment.is_completed(state):
            text = await self._next_text()
        if state["error"] is not None:
            raise state["error"]
        await environment.render_completion(state)
        await environment.rubric.score_rollout(state)
        return Observation(text or "", text is None, float(state["reward"]))

    async def _next_text(self) -> str | None:
        """What the environment says to the last turn; None: it has ended the episode."""
        environment, state = self._environment, self._state
        before = [*self._shown, *state["trajectory"][-1]["completion"]]
        messages = await environment.get_prompt_messages(state)
        if state["final_env_response"] is not None:
            await environment.is_completed(state)  # Notes why it has ended.
            return None
        messages = _normalized(messages)
        if messages[: len(before)] != before:
            raise ValueError("it rewrites earlier turns; episodes only go on here")
        self._shown = messages
        said = [_plain(message) for message in messages[len(before) :]]
        others = {each["role"] for each in said} - {self.role}
        if others:
            raise ValueError(f"it answers as {', '.join(sorted(others))}; {self.role} is supported")
        return "\n".join(each["content"] for each in said)

    def _response(self, action: str, tools: bool, turn: int) -> Any:
        types = self._verifiers.types
        calls = _calls(action) if tools else []
        message = types.ResponseMessage(
            content=_CALL.split(action, maxsplit=1)[0].strip() if calls else action,
            tool_calls=[
                types.ToolCall(id=f"call_{turn}_{number}", name=name, arguments=arguments)
                for number, (name, arguments) in enumerate(calls)
            ]
            or None,
            finish_reason="tool_calls" if calls else "stop",
            is_truncated=False,
        )
        return types.Response(id=f"turn_{turn}", created=0, model="policy", message=message)

    async def _ended(self, state: Any) -> None:
        await self._environment.cleanup(state)
        await self._environment.rubric.cleanup(state)


def questions(
    id: str, options: Mapping[str, Any] | None = None, split: str = "train"
) -> Iterator[dict[str, Any]]:
    """Rows of a question file: the prompts of an environment, and whose examples they are.

    Args:
        id: See `VerifiersEnvironment`.
        options: See `VerifiersEnvironment`.
        split: `train` or `eval`.

    Raises:
        ValueError: There is no such environment or split, or a prompt has more than text.
        MissingPackage: See `VerifiersEnvironment`.
    """
    verifiers = _package()
    environment = _loaded(verifiers, id, dict(options or {}))
    for number, example in enumerate(_examples(environment, split)):
        row: dict[str, Any] = {
            "prompt": [_plain(each) for each in _normalized(example["prompt"])],
            "answer": str(example.get("answer") or "-"),
            "example": number,
            "split": split,
        }
        if environment.tool_defs:
            row["tools"] = [_schema(tool) for tool in environment.tool_defs]
        yield row


def _package() -> Any:
    verifiers = import_package("verifiers", extra="verifiers")
    if not hasattr(verifiers, "load_environment"):
        raise MissingPackage(
            f"verifiers {verifiers.__version__} has no load_environment, and its tasksets ask a "
            "model server themselves; pip install 'megatron-resrl[verifiers]', which is below 0.4"
        )
    return verifiers


def _loaded(verifiers: Any, id: str, options: dict[str, Any]) -> Any:
    key = json.dumps([id, options], sort_keys=True, default=repr)
    with _loading:
        if key not in _environments:
            environment = verifiers.load_environment(id, **options)
            _require_turns(verifiers, environment, id)
            _environments[key] = environment
        return _environments[key]


def _require_turns(verifiers: Any, environment: Any, id: str) -> None:
    """
    Raises:
        ValueError: The environment has another kind of episode than ours.
    """
    plain = verifiers.MultiTurnEnv
    if not isinstance(environment, plain):
        raise ValueError(f"{id} is a {type(environment).__name__}, and no MultiTurnEnv")
    for method in _OWN_LOOP:
        if getattr(type(environment), method) is not getattr(plain, method):
            raise ValueError(
                f"{id} has a {method} of its own, which asks a model server; only environments "
                "that are answered turn by turn can be played"
            )
    if environment.rubric.has_group_rewards:
        raise ValueError(f"{id} scores the samples of a group together, which is not supported")


def _examples(environment: Any, split: Any) -> Any:
    if split not in ("train", "eval"):
        raise ValueError(f"split is {split!r}; give train or eval")
    return environment.get_dataset() if split == "train" else environment.get_eval_dataset()


def _example(environment: Any, record: PromptRecord) -> dict[str, Any]:
    examples = _examples(environment, record.extra.get("split", "train"))
    number = record.extra.get("example")
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(examples):
        raise ValueError(
            f"column example of {record} is {number!r}; the environment has 0 to "
            f"{len(examples) - 1}"
        )
    return examples[number]


def _normalized(messages: Any) -> list[Any]:
    """Messages as the package's objects; environments may also give dictionaries."""
    module = import_package("verifiers.utils.message_utils", extra="verifiers")
    return module.normalize_messages(messages, field_name="prompt")


def _plain(message: Any) -> dict[str, str]:
    """A message as a dictionary.

    Raises:
        ValueError: It has more than text.
    """
    if not isinstance(message.content, str):
        raise ValueError(f"a message of {message.role} has more than text")
    return {"role": message.role, "content": message.content}


def _calls(action: str) -> list[tuple[str, str]]:
    """Names and arguments of the calls of a turn; none where one is broken, as servers do it."""
    calls = []
    for text in _CALL.findall(action):
        try:
            call = json.loads(text)
            calls.append((str(call["name"]), json.dumps(call["arguments"])))
        except (ValueError, KeyError, TypeError, RecursionError):
            return []
    return calls


def _schema(tool: Any) -> dict[str, Any]:
    described = {each: getattr(tool, each) for each in ("name", "description", "parameters")}
    return {"type": "function", "function": described}


@functools.cache
def _no_server() -> Any:
    """A client for episodes, which have to hold one."""
    client = import_package("verifiers.clients", extra="verifiers").Client

    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the environment asks a model server, and the policy is none")

    methods = dict.fromkeys([*client.__abstractmethods__, "get_response"], refuse)
    return type("NoServer", (client,), methods)(None)


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of all episodes of this process: what environments share belongs to one."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="verifiers", daemon=True).start()
    return loop


def _wait(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run_coroutine_threadsafe(coroutine, _loop()).result()
