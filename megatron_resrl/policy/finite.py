"""Refuses log-probabilities that are not finite, and names the response and the cause."""

from __future__ import annotations

from collections.abc import Callable

import torch

from megatron_resrl.errors import RunError
from megatron_resrl.platform.distributed import any_rank, gather_objects
from megatron_resrl.policy.policy import Policy
from megatron_resrl.weights.hugging_face import export_weights

_NAMED = 3
"""Largest number of bad weights that a message names."""


class LogitsNotFinite(RunError):
    """The model gives no distribution to sample from or to learn with."""

    common = True


def require_finite(
    log_probs: torch.Tensor,
    generated: torch.Tensor,
    name: Callable[[int], str],
    policy: Policy,
    model_path: str,
    *,
    phase: str,
) -> None:
    """Refuses log-probabilities of generated tokens that are NaN or infinite. Collective.

    Args:
        log_probs: [B, T] of this rank's responses.
        generated: [B, T] bool on the same device: the generated tokens; elsewhere `log_probs` may
            hold anything.
        name: Index of a response -> its name in the message.
        policy: The policy that computed them; if one is not finite, its weights are searched for
            the cause.
        model_path: `model.path`.
        phase: What the run was doing, for the message.

    Raises:
        LogitsNotFinite: On all ranks, if any rank has a log-probability that is not finite.
    """
    bad = generated & ~log_probs.isfinite()
    # A single all-reduce in the usual case, that all are finite.
    if not any_rank(bool(bad.any())):
        return
    found = None
    if bad.any():
        row, position = bad.nonzero()[0].tolist()
        value = float(log_probs[row, position])
        found = f"that of token {position} of {name(row)} is {value}"
    count = [int(bad.sum()), int(generated.sum())]
    replies = [each for each in gather_objects((found, count)) if each[0] is not None]
    (first, (few, many)) = replies[0]
    raise LogitsNotFinite(
        f"{phase}: the model's logits are not finite: log-probabilities are not numbers for {few} "
        f"of {many} tokens, and {first}. {_reason(policy, model_path)}"
    )


def _reason(policy: Policy, model_path: str) -> str:
    """What is wrong with the weights, if they are to blame. Collective."""
    bad: list[str] = []
    for name, weight in export_weights(policy.modules, policy.hf_config):
        count = int((~weight.isfinite()).sum())
        if count:
            bad.append(f"{name} ({count} of {weight.numel()} values)")
    if not bad:
        return (
            "All weights of the trainer are finite. Either activations overflow, because model.path"
            f" = {model_path!r} does not work in {policy.config.params_dtype} or its weights grew "
            "too large in training (lower optimizer.lr or go back to an older checkpoint), or the "
            "engine's weights are not the trainer's (rollout.verify_weights compares the two)"
        )
    more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
    return (
        f"Weights that are not finite: {', '.join(bad[:_NAMED])}{more}; if model.path = "
        f"{model_path!r} has them already, use an undamaged copy"
    )
