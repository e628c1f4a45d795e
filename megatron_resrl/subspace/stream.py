"""Turns the hidden states of a scoring pass into token weights, one micro-batch at a time.

Per window of groups: the positives arrive first and are collected, the bases are made, then each
micro-batch of negatives is scored and freed: a negative token leaves only its residual. Only the
collector and the bases of one window are in memory at a time.

Shapes: B responses of the pool, T longest response, G groups of a window, n tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from megatron_resrl.platform.distributed import on_device
from megatron_resrl.subspace.basis import Basis
from megatron_resrl.subspace.collectors import COLLECTORS, Collector
from megatron_resrl.subspace.plan import GroupPlan, SubspaceSettings, Window
from megatron_resrl.subspace.report import GroupReport, reports_of
from megatron_resrl.subspace.residual import residuals
from megatron_resrl.subspace.shard_group import TokenShardGroup
from megatron_resrl.subspace.weighting import GroupWeights, group_weights

_NO_TOKEN = torch.iinfo(torch.int64).max


class TokenWeightStream:
    """Collects positives, computes bases, and weights negatives, window by window.

    Every rank of `ranks` makes the same plan and adds its own tokens of the same micro-batches.
    The host waits for the device a few times per window, never per group.

    Attributes:
        weights: [B, T] float32 on the device, 1 for all other tokens; complete after `finish`.
        peak_bytes: Peak memory of hidden states, statistics and bases.
    """

    def __init__(
        self,
        plan: GroupPlan,
        settings: SubspaceSettings,
        *,
        method: str,
        device: torch.device | str = "cpu",
        order: Sequence[int] | None = None,
        ranks: TokenShardGroup | None = None,
        name: Callable[[int], str] = "response {}".format,
        at_once: bool = False,
    ) -> None:
        """
        Args:
            plan: Of the pool.
            settings: Settings of the method; the same as for the plan.
            method: `rows` or `gram`.
            device: Of the hidden states.
            order: The responses of the pool that this rank will see, in the order of the plan;
                default: all.
            ranks: Ranks that share the tokens of the pool; default: this rank alone.
            name: Index of a response -> its name in errors.
            at_once: Weigh a group as soon as its last negative has arrived; default: all groups of
                a window together, when it is complete.
        """
        self.plan = plan
        self.settings = settings
        self.ranks = ranks or TokenShardGroup()
        self.weights = torch.ones(plan.sampled_BT.shape, device=device)
        self.peak_bytes = 0
        self._collector_class = COLLECTORS[method]
        self._name = name
        self._at_once = at_once
        self._residual_BT = torch.zeros_like(self.weights, dtype=torch.float64)
        self._next_rows = list(plan.order if order is None else order)
        self._window = 0
        self._slot_G = torch.zeros(len(plan.group_ids), dtype=torch.int64)
        self._collector: Collector | None = None
        self._basis: Basis | None = None
        self._finite_flags: list[tuple[Tensor, Tensor]] = []
        self._sampled_tokens = 0
        self._weighted_tokens = 0
        self._report_rows: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def add(
        self, hidden_nH: Tensor, row_n: Tensor, position_n: Tensor, arrived: Sequence[int]
    ) -> None:
        """Takes one micro-batch; closes the windows that it completes.

        Args:
            hidden_nH: [n, H] any float dtype: the states that predict this rank's tokens.
            row_n: [n] int64 on the CPU: the response of the pool that each belongs to.
            position_n: [n] int64 on the CPU: the token's index in its response.
            arrived: The responses of the micro-batch, tokens here or not.

        Raises:
            ValueError: Responses out of the plan's order, or tokens of a window that are missing
                or on two ranks; on all ranks together.
            FloatingPointError: Hidden states that are not finite; on all ranks together.
        """
        if list(arrived) != self._next_rows[: len(arrived)]:
            raise ValueError(
                f"responses {list(arrived)} arrived where the plan has "
                f"{self._next_rows[: len(arrived)]}"
            )
        del self._next_rows[: len(arrived)]
        # Ranks that have copies of the same tokens divide them.
        token_n = row_n * self.weights.shape[1] + position_n
        mine_n = token_n % self.ranks.ranks_per_token == self.ranks.token_rank
        sampled_n = self.plan.sampled_BT[row_n, position_n] & mine_n
        weighted_n = self.plan.weighted_BT[row_n, position_n] & mine_n
        # Mixed precision of the surrounding model must not reach these products.
        with torch.autocast(hidden_nH.device.type, enabled=False):
            while self._window < len(self.plan.windows):
                window = self.plan.windows[self._window]
                inside_n = torch.isin(self.plan.group_B[row_n], torch.tensor(window.groups))
                self._collect(hidden_nH, row_n, position_n, sampled_n & inside_n)
                if not self._all_arrived(window.positives):
                    return
                negatives_here = not set(arrived).isdisjoint(window.negatives)
                if not (negatives_here or self._all_arrived(window.negatives)):
                    return
                self._fit(hidden_nH)
                self._score(hidden_nH, row_n, position_n, weighted_n & inside_n)
                if self._at_once:
                    self._weigh_complete(window, set(arrived))
                if not self._all_arrived(window.negatives):
                    return
                self._close(window)

    def finish(self) -> list[GroupReport]:
        """The reports of all groups, in ascending order of their ids.

        Raises:
            ValueError: Responses of the plan have not arrived.
        """
        if self._next_rows:
            raise ValueError(f"responses {self._next_rows} of the plan have not arrived")
        return reports_of(self.plan, self._report_rows)

    def _all_arrived(self, rows: Sequence[int]) -> bool:
        """Whether none of these responses is still to come to this rank."""
        return not set(rows) & set(self._next_rows)

    def _select(
        self, hidden_nH: Tensor, row_n: Tensor, position_n: Tensor, chosen_n: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states of chosen tokens, and which tokens those are."""
        index = chosen_n.nonzero().flatten()
        row, position = row_n[index], position_n[index]
        chosen_nH = hidden_nH
        if len(index) < len(hidden_nH):
            chosen_nH = hidden_nH.index_select(0, on_device(index, hidden_nH.device))
        # A square too large for float32 is not finite either.
        wide = torch.float64 if chosen_nH.dtype == torch.float64 else torch.float32
        finite = torch.linalg.vector_norm(chosen_nH, dim=1, dtype=wide).isfinite()
        token = row * self.weights.shape[1] + position
        self._finite_flags.append((finite, on_device(token, finite.device)))
        return chosen_nH, row, position

    def _collect(
        self, hidden_nH: Tensor, row_n: Tensor, position_n: Tensor, chosen_n: Tensor
    ) -> None:
        if self._basis is not None or not bool(chosen_n.any()):
            return
        chosen_nH, row, position = self._select(hidden_nH, row_n, position_n, chosen_n)
        self._sampled_tokens += len(row)
        collector = self._window_collector(hidden_nH)
        slot = self._slot_G[self.plan.group_B[row]]
        collector.add(chosen_nH, slot, self.plan.index_in_group_BT[row, position])

    def _window_collector(self, like: Tensor) -> Collector:
        """The collector of the window; groups without weights take no place in it."""
        if self._collector is None:
            groups = self._weighted_groups(self.plan.windows[self._window])
            self._slot_G[groups] = torch.arange(len(groups))
            self._collector = self._collector_class(
                self.plan.sampled_G[groups], like.shape[1], self.settings.rank, self.ranks, like
            )
        return self._collector

    def _weighted_groups(self, window: Window) -> Tensor:
        groups = torch.tensor(window.groups, dtype=torch.int64)
        return groups[self.plan.sampled_G[groups] > 0]

    def _fit(self, like: Tensor) -> None:
        groups = self._weighted_groups(self.plan.windows[self._window])
        if self._basis is not None or not len(groups):
            return
        self._check(self._sampled_tokens, int(self.plan.sampled_G[groups].sum()))
        collector = self._window_collector(like)
        self._basis = collector.bases()
        self.peak_bytes = max(self.peak_bytes, collector.nbytes + self._basis.nbytes)
        self._collector = None

    def _score(
        self, hidden_nH: Tensor, row_n: Tensor, position_n: Tensor, chosen_n: Tensor
    ) -> None:
        if self._basis is None or not bool(chosen_n.any()):
            return
        chosen_nH, row, position = self._select(hidden_nH, row_n, position_n, chosen_n)
        self._weighted_tokens += len(row)
        residual_n = residuals(chosen_nH, self._slot_G[self.plan.group_B[row]], self._basis)
        place = tuple(on_device(torch.stack((row, position)), residual_n.device))
        self._residual_BT[place] = residual_n

    def _close(self, window: Window) -> None:
        if self._basis is not None:
            groups = self._weighted_groups(window)
            self._check(self._weighted_tokens, int(self.plan.weighted_G[groups].sum()))
            if not self._at_once:
                self._weigh(window.negatives, groups, self._basis)
        self._basis = None
        self._sampled_tokens = self._weighted_tokens = 0
        self._window += 1

    def _weigh_complete(self, window: Window, arrived: set[int]) -> None:
        """Weighs the groups whose last negative is among the responses that have just arrived."""
        rows_of: dict[int, list[int]] = {}
        for row in window.negatives:
            rows_of.setdefault(int(self.plan.group_B[row]), []).append(row)
        complete = {
            group: rows
            for group, rows in sorted(rows_of.items())
            if not arrived.isdisjoint(rows) and self._all_arrived(rows)
        }
        if self._basis is not None and complete:
            rows = [row for own in complete.values() for row in own]
            self._weigh(rows, torch.tensor(list(complete)), self._basis)

    def _weigh(self, negatives: Sequence[int], groups: Tensor, basis: Basis) -> None:
        """Quantiles and weights of all negatives of some groups, the same on all ranks.

        Args:
            negatives: All of these groups.
            groups: Of the window, by index in the plan.
            basis: Of the window.
        """
        device = self.weights.device
        rows = torch.tensor(negatives)
        token_row, position = self.plan.weighted_BT[rows].nonzero(as_tuple=True)
        row = rows[token_row]
        here = tuple(on_device(torch.stack((row, position)), device))
        # Collective: each token's residual is on one rank, zero on the others.
        residual_n = self.ranks.sum_over_ranks(self._residual_BT[here])
        counts_G = self.plan.weighted_G[groups]
        place_G = torch.zeros_like(self._slot_G)
        place_G[groups] = torch.arange(len(groups))
        slot = place_G[self.plan.group_B[row]]
        host_place = slot * int(counts_G.max()) + self.plan.index_in_group_BT[row, position]
        place = on_device(host_place, device)
        # [n] -> [G, W], one line per group.
        residual_GW = residual_n.new_zeros(len(groups) * int(counts_G.max()))
        residual_GW[place] = residual_n
        share_GW = torch.zeros(len(residual_GW), dtype=torch.float64)
        share_GW[host_place] = self.plan.share_B[row]
        weighted = group_weights(
            residual_GW.view(len(groups), -1),
            counts_G,
            self.settings,
            [self.plan.keys[group] for group in groups.tolist()],
            share_GW.view(len(groups), -1),
        )
        self.weights[here] = weighted.weights_GW.flatten()[place].float()
        of_window = on_device(self._slot_G[groups], device)
        self._report_rows.append((groups, _summary(weighted, basis, of_window)))

    def _check(self, tokens: int, planned: int) -> None:
        """Refuses states that are not finite, and tokens on no rank or on several. Collective."""
        device = self.weights.device
        bad = torch.zeros((), dtype=torch.int64, device=device)
        first = torch.full((), _NO_TOKEN, device=device)
        for finite, token in self._finite_flags:
            bad = bad + (~finite).sum()
            if len(token):
                first = torch.minimum(first, token.masked_fill(finite, _NO_TOKEN).min())
        self._finite_flags = []
        # Collective: all ranks raise alike.
        found = torch.stack((bad, first, torch.full_like(bad, tokens)))
        bad_R, first_R, tokens_R = self.ranks.all_gather(found).T.tolist()
        if sum(bad_R):
            row, position = divmod(min(first_R), self.weights.shape[1])
            raise FloatingPointError(
                f"hidden states of {sum(bad_R)} of {sum(tokens_R)} tokens are not finite (or too "
                f"large to square in float32); the first is token {position} of {self._name(row)}"
            )
        if sum(tokens_R) != planned:
            raise ValueError(
                f"{sum(tokens_R)} tokens were added where the plan has {planned}: each must be "
                "on exactly one rank, or on `ranks_per_token` of them"
            )


def _summary(weighted: GroupWeights, basis: Basis, slot_G: Tensor) -> Tensor:
    """[G, 8] the measured fields of the reports, still on the device.

    Args:
        weighted: Of G groups.
        basis: Of their window.
        slot_G: [G] their places in it.
    """
    values_GK = basis.eigenvalues_GK[slot_G]
    share_GK = values_GK / values_GK.sum(1, keepdim=True).clamp_min(1e-300)
    entropy_G = -(share_GK * share_GK.clamp_min(1e-300).log()).sum(1)
    smallest_G = values_GK.masked_fill(values_GK <= 0, float("inf")).amin(1)
    return torch.stack(
        (
            weighted.mean_weight_G,
            weighted.q_low_G,
            weighted.q_high_G,
            basis.energy_G[slot_G],
            basis.rank_G[slot_G].double(),
            values_GK[:, 0] / basis.trace_G[slot_G].clamp_min(1e-300),
            (values_GK[:, 0] / smallest_G).sqrt(),
            entropy_G.exp(),
        ),
        1,
    )
