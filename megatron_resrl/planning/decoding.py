"""Generation by the embedded engine, from a few of its tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from megatron.core import parallel_state

from megatron_resrl.config.schema import Recipe
from megatron_resrl.planning.recorder import Recorder
from megatron_resrl.planning.records import PhaseRecord
from megatron_resrl.planning.scaling import combined
from megatron_resrl.planning.workload import Workload
from megatron_resrl.platform.fake_device.device import FakeDevice
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.engine import GenerationRequest, SamplingParams
from megatron_resrl.rollout.engines.megatron import MegatronEngine

_STOP = 1
_GOES_ON = 0
_FEW = 8
"""Tokens up to which all of a response is decoded."""
_DRAW = ("rollout/engines/megatron.py", "_draw")


class Decoding:
    """Decodes one batch of the engine, and counts what all batches of a step take.

    The first tokens give the peak, for the cache has its whole size from the start. Further tokens
    count as one in the middle of the responses: what a token costs grows evenly with its position.
    """

    def __init__(
        self, device: FakeDevice, recorder: Recorder, policy: Policy, recipe: Recipe
    ) -> None:
        """
        Args:
            device: Reads what is drawn.
            recorder: Records the phase.
            policy: Decodes.
            recipe: Sizes of groups and batches, and how tokens are drawn.
        """
        self._device = device
        self._recorder = recorder
        self._recipe = recipe
        self._engine = MegatronEngine(
            policy, max_running_samples=recipe.rollout.max_running_samples
        )
        self._replicas = parallel_state.get_data_parallel_world_size(with_context_parallel=True)

    def record(self, workload: Workload) -> PhaseRecord:
        """The phase of a whole step."""
        rollout = self._recipe.rollout
        own = math.ceil(rollout.prompts_per_step / self._replicas)
        together = min(own, max(1, rollout.max_running_samples // rollout.group_size))
        batches = own / together
        prompt, response = workload.prompt_tokens, workload.response_tokens
        if response <= _FEW:
            whole = self._decode(together, prompt, response, drawn=response)
            return combined([(whole, batches)], like=whole)
        start = self._decode(together, prompt, response, drawn=2)
        half = response // 2
        fewer, more = (
            self._decode(together, prompt + half, response - half, drawn=drawn) for drawn in (2, 4)
        )
        # The first two tokens have been drawn at the start.
        per_token = batches * (response - 2) / 2
        return combined([(start, batches), (more, per_token), (fewer, -per_token)], like=start)

    def _decode(self, prompts: int, prompt: int, response: int, *, drawn: int) -> PhaseRecord:
        """Prompts of one batch, whose responses all end after `drawn` tokens."""
        rollout = self._recipe.rollout

        def draw(local: Mapping[str, Any], tensor: torch.Tensor) -> torch.Tensor:
            last = local["position"] + 1 >= drawn
            tokens = torch.full(tensor.shape[1:], float(_STOP if last else _GOES_ON))
            return torch.stack([tokens, torch.zeros_like(tokens)])

        self._device.answers[_DRAW] = draw
        request = GenerationRequest(
            prompts=[[_GOES_ON] * prompt] * (prompts * self._replicas),
            sampling=SamplingParams(
                max_new_tokens=response,
                stop_token_ids=(_STOP,),
                n=rollout.group_size,
                temperature=rollout.temperature,
                top_p=rollout.top_p,
                top_k=rollout.top_k,
            ),
            seed=(self._recipe.seed,),
        )
        with self._recorder.phase("generation"):
            self._engine.generate(request)
        return self._recorder.take()["generation"]
