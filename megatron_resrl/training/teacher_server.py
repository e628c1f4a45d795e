"""Log-probabilities of a teacher behind an OpenAI-compatible address.

Shapes: B responses of this replica, T tokens of the step's longest response.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_resrl.config.schema_teacher import TeacherConfig
from megatron_resrl.diagnostics.replicas import speaks_for_replica
from megatron_resrl.errors import InputError, RunError
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.platform.distributed import device, gather_objects, run_on_every_rank
from megatron_resrl.platform.meetings import meeting
from megatron_resrl.policy.schedule import is_last_stage
from megatron_resrl.rollout.batch import RolloutBatch
from megatron_resrl.rollout.weight_sync.control import authorization, shortened
from megatron_resrl.training.scoring import PassSettings

_AT_ONCE = 32
"""Requests of one replica that a server has at the same time; it batches them itself."""


class TeacherFailure(RunError):
    """The teacher's server gives no log-probabilities."""


class _Again(Exception):
    """A request failed in a way that another attempt may not."""


class TeacherServer:
    """An `OtherModel` on a server with vLLM's `prompt_logprobs`.

    One rank of each replica asks, for whole sequences of token ids, prompt and response.
    """

    def __init__(self, settings: TeacherConfig) -> None:
        """Finds the model. Collective.

        Args:
            settings: With a `url`.

        Raises:
            InputError: On all ranks: the server does not answer, or does not serve the model.
        """
        self._settings = settings
        self._url = (settings.url or "").rstrip("/")
        self._client = httpx.Client(
            headers=authorization(settings.api_key), timeout=settings.timeout_s, trust_env=False
        )
        self._model = run_on_every_rank(self._find_model)

    def log_probs(self, batch: RolloutBatch, settings: PassSettings, timers: PhaseTimers) -> Tensor:
        """See `OtherModel.log_probs`; at temperature 1, whatever the settings say.

        Raises:
            TeacherFailure: On all ranks: a request failed as often as it may, or the server refused
                it, or its answer does not fit.
        """
        found_BT = torch.zeros(batch.loss_mask.shape, dtype=torch.float32)
        problem = None
        if speaks_for_replica():
            try:
                self._fill(found_BT, batch)
            except TeacherFailure as failure:
                problem = str(failure)
        problems = [each for each in gather_objects(problem) if each is not None]
        if problems:
            ended = TeacherFailure(problems[0])
            ended.common = True
            raise ended
        found_BT = found_BT.to(device())
        if is_last_stage():
            # To the ranks that hold copies of the replica's last stage, or pieces of its responses.
            context = parallel_state.get_context_parallel_group()
            tensor = parallel_state.get_tensor_model_parallel_group()
            with meeting():
                dist.broadcast(found_BT, group_src=0, group=context)
                dist.broadcast(found_BT, group_src=0, group=tensor)
        return found_BT

    def _find_model(self) -> str:
        """The name to ask for."""
        try:
            answer = self._tried(lambda: self._client.get(f"{self._url}/models"))
            served = [str(each["id"]) for each in answer["data"]]
        except (TeacherFailure, KeyError, TypeError) as error:
            raise InputError(
                f"teacher.url = {self._settings.url!r}: no list of models ({error}); give the "
                "address of an OpenAI-compatible server that runs, such as http://host:8000/v1"
            ) from error
        wanted = self._settings.model
        if wanted is None and len(served) == 1:
            return served[0]
        if wanted not in served:
            raise InputError(
                f"teacher.model = {wanted!r}: {self._settings.url} serves {', '.join(served)}; "
                "name one of them"
            )
        return wanted

    def _fill(self, found_BT: Tensor, batch: RolloutBatch) -> None:
        """Writes the log-probabilities of each response into its row."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            rows = list(pool.map(lambda row: self._score(batch, row), range(len(batch))))
        for row, log_probs in enumerate(rows):
            found_BT[row, : len(log_probs)] = torch.tensor(log_probs, dtype=torch.float32)

    def _score(self, batch: RolloutBatch, row: int) -> list[float]:
        """Of the tokens of a response."""
        prompt, response = int(batch.prompt_lengths[row]), int(batch.response_lengths[row])
        tokens = batch.token_ids[row, : prompt + response].tolist()
        body = {
            "model": self._model,
            "prompt": tokens,
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": 0,
        }
        answer = self._tried(lambda: self._client.post(f"{self._url}/completions", json=body))
        try:
            return _log_probs(answer["choices"][0]["prompt_logprobs"], tokens)[prompt:]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise TeacherFailure(
                f"teacher.url = {self._settings.url!r}: the answer on {batch.name(row)} has no "
                f"log-probabilities of its {len(tokens)} tokens ({type(error).__name__}: {error}); "
                "a server with vLLM's prompt_logprobs is needed"
            ) from error

    def _tried(self, send: Callable[[], httpx.Response]) -> Any:
        """The decoded answer of a request, sent again where that may help."""
        attempts = self._settings.retries + 1
        for number in range(attempts):
            try:
                return self._answer(send)
            except _Again as failure:
                last = failure
            if number + 1 < attempts:
                time.sleep(2.0**number)
        raise TeacherFailure(
            f"teacher.url = {self._settings.url!r}: {last}, at the last of {attempts} attempts; "
            "see that the server runs, or raise teacher.timeout_s or teacher.retries"
        )

    def _answer(self, send: Callable[[], httpx.Response]) -> Any:
        try:
            answer = send()
        except httpx.TimeoutException as error:
            limit = self._settings.timeout_s
            raise _Again(f"no answer within teacher.timeout_s = {limit:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _Again(f"{type(error).__name__}: {error}") from error
        if answer.status_code >= 500 or answer.status_code == 429:
            raise _Again(f"status {answer.status_code}: {shortened(answer.text)}")
        if not answer.is_success:
            raise TeacherFailure(
                f"teacher.url = {self._settings.url!r} refused a request with status "
                f"{answer.status_code}: {shortened(answer.text)}"
            )
        try:
            return answer.json()
        except ValueError as error:
            raise _Again(f"an answer that is not JSON: {shortened(answer.text)}") from error


def _log_probs(entries: Sequence[Any], tokens: Sequence[int]) -> list[float]:
    """One number per token; 0 for the first, which has none.

    Raises:
        ValueError: There are more or fewer, or one is no log-probability.
        KeyError, TypeError, AttributeError: The entries are of another form.
    """
    if len(entries) != len(tokens):
        raise ValueError(f"{len(entries)} entries")
    found = [0.0]
    for entry, token in zip(entries[1:], tokens[1:], strict=True):
        value = float(entry[str(token)]["logprob"])
        # vLLM writes -9999 for what is smaller, and for what is no number.
        if not -9999 < value < 1e-3:
            raise ValueError(f"{value} as the log-probability of token {token}")
        found.append(value)
    return found
