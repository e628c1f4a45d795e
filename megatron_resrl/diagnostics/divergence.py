"""How far the policy is from its reference, where it has one."""

from __future__ import annotations

from megatron_resrl.algorithms.kl_penalty import REFERENCE, estimated_kl
from megatron_resrl.diagnostics.observer import StepStart, StepState
from megatron_resrl.diagnostics.replicas import gather_from_replicas, speaks_for_replica
from megatron_resrl.policy.results import OnFinalStates


class Divergence:
    """Observes the KL divergence from the reference; see `StepObserver`."""

    def before_scoring(self, start: StepStart) -> OnFinalStates | None:
        """Nothing."""
        return None

    def after_scoring(self, state: StepState) -> None:
        """Nothing."""

    def after_updates(self, state: StepState) -> dict[str, float]:
        """`reference/kl`: mean of k3 over all generated tokens, before the updates. Collective."""
        if REFERENCE not in state.streams:
            return {}
        own = None
        if speaks_for_replica():
            mask_BT = state.local.loss_mask
            log_ratio = state.scores.log_probs.cpu() - state.streams[REFERENCE].cpu()
            kl = estimated_kl(log_ratio[mask_BT].double(), "k3")
            own = (float(kl.sum()), int(mask_BT.sum()))
        sums, tokens = zip(*gather_from_replicas(own), strict=True)
        return {"reference/kl": sum(sums) / sum(tokens)}
