"""Responses of a model whose logits are not numbers are refused, whatever engine drew them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from megatron_resrl.data.prompts import Prompt
from megatron_resrl.platform.distributed import device
from megatron_resrl.policy.finite import require_finite
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.engine import Response


def require_finite_responses(
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[Response]],
    policy: Policy,
    model_path: str,
    *,
    phase: str,
) -> None:
    """Refuses responses with a log-probability that is NaN or infinite. Collective.

    Args:
        prompts: What was asked, for the message.
        responses: For each prompt its responses, the same on all ranks.
        policy: Whose weights drew them.
        model_path: `model.path`.
        phase: What the run was doing, for the message.

    Raises:
        LogitsNotFinite: On all ranks.
    """
    names = [
        f"response {place} to prompt {prompt.record.index}"
        for prompt, several in zip(prompts, responses, strict=True)
        for place in range(len(several))
    ]
    rows = [
        torch.tensor(response.log_probs, dtype=torch.float64)
        for several in responses
        for response in several
    ]
    if not rows:
        return
    log_probs = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device())
    everywhere = torch.ones_like(log_probs, dtype=torch.bool)
    require_finite(log_probs, everywhere, names.__getitem__, policy, model_path, phase=phase)
