"""Training steps written down a second time, from the papers' formulas: what `rl_step` has to do.

transformers' model on full padded sequences, a full SVD by NumPy in float64 (`reference_weights`),
rewards and advantages one response at a time (`reference_advantages`), the loss token by token in
torch, torch's own AdamW. Nothing of the product is imported; settings come as the nested dictionary
of a recipe. Sources: ResRL, arXiv 2605.00380; PPO, 1707.06347; dual clip, 1912.09729; DAPO,
2503.14476; PSR, NSR and W-REINFORCE, 2506.01347; IcePop, 2510.18855; Dr.GRPO, 2503.20783; RLOO,
2402.14740; REINFORCE++, 2501.03262; GMPO, 2507.20673; SAPO, 2511.20347; DPPO, 2602.04879; rejection
fine-tuning, 2308.01825.

Shapes: B responses of a step, T positions of the longest response, H hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from reference_advantages import (
    Rollout,
    Settings,
    response_advantages,
    shaped_reward,
    weights_by_probability,
    whitened,
)
from reference_weights import group_key, random_weights, residual_weights
from tiny_families import named_weights
from torch import Tensor
from transformers import PreTrainedModel

OF_RESRL = ("residual", "resrl", "constant", "random", "inverted")
"""Weightings that `resrl.positive_weight` belongs to."""


@dataclass(frozen=True)
class Trained:
    """What the steps did."""

    weights: dict[str, Tensor]
    """After the last step, under the names of files."""
    metrics: list[dict[str, float]]
    """Of each step: the mean over its updates."""
    advantages: list[list[float]]
    """[B] of each step."""
    token_weights: list[np.ndarray]
    """[B, T] of each step, those that its updates used."""
    margin: float
    """How close a log-ratio or a correction came to a bound where rounding decides (0: equal)."""


def train(
    model: PreTrainedModel,
    steps: Sequence[Sequence[Rollout]],
    settings: Settings,
    think_markers: tuple[int, int] | None = None,
) -> Trained:
    """Takes the steps, one after the other.

    Args:
        model: Changed in place; fp32.
        steps: The rollouts of each.
        settings: A recipe as nested dictionaries.
        think_markers: Token ids between which responses think, if thinking is masked.
    """
    trainer = _Trainer(model, settings, think_markers, total_steps=settings["steps"])
    metrics, advantages, weights = [], [], []
    for number, rollouts in enumerate(steps, start=1):
        found = trainer.step(number, list(rollouts))
        metrics.append(found[0])
        advantages.append(found[1])
        weights.append(found[2])
    return Trained(named_weights(model), metrics, advantages, weights, trainer.margin)


class _Trainer:
    """A model, its optimizer, and the rules of a step."""

    def __init__(
        self,
        model: PreTrainedModel,
        settings: Settings,
        think_markers: tuple[int, int] | None,
        total_steps: int,
    ) -> None:
        self.model = model
        self.settings = settings
        self.markers = think_markers
        self.margin = float("inf")
        algorithm = settings["algorithm"]
        own = settings["resrl"]["weights"] if algorithm["name"] == "resrl" else "none"
        self.weighting = own if algorithm["weighting"] == "auto" else algorithm["weighting"]
        self.start = copy.deepcopy(model)
        self.planned = total_steps * settings["algorithm"]["updates_per_step"]
        self.updates = 0
        numbers = settings["optimizer"]
        parameters = list(model.parameters())
        self.adam = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.dim() > 1]},
                {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
            ],
            betas=(numbers["adam_beta1"], numbers["adam_beta2"]),
            eps=numbers["adam_eps"],
            weight_decay=numbers["weight_decay"],
        )

    def step(
        self, number: int, rollouts: list[Rollout]
    ) -> tuple[dict[str, float], list[float], np.ndarray]:
        """Metrics, advantages [B] and the token weights [B, T] that the updates used."""
        algorithm = self.settings["algorithm"]
        masked = [self.settings["reward"]["overlong"] == "mask" and r.cut_off for r in rollouts]
        start_BT = self._start_log_probs(rollouts)
        advantages = response_advantages(self._penalised(rollouts, start_BT), self.settings)
        if algorithm["name"].startswith("reinforce_pp"):
            counts = [r.count * (not m) for r, m in zip(rollouts, masked, strict=True)]
            advantages = whitened(advantages, counts)
        by_advantage = self.settings["resrl"]["positives"] == "advantage"
        positive = [
            (a > 0 if by_advantage and self.weighting in OF_RESRL else r.score > 0)
            for r, a in zip(rollouts, advantages, strict=True)
        ]
        advantages = [0.0 if m else a for a, m in zip(advantages, masked, strict=True)]
        with torch.no_grad():
            old_BT, hidden_BTH, _ = self._forward(rollouts)
        weights_BT = self._token_weights(rollouts, positive, masked, advantages, hidden_BTH, number)
        factor_BT = self._corrections(rollouts, old_BT)
        entropy_coefficient = algorithm["options"].get("entropy_coefficient", 0.0)
        kl_coefficient = algorithm["kl_coefficient"] * (algorithm["kl_in"] == "loss")
        second_term = entropy_coefficient + kl_coefficient > 0 or algorithm["name"] == "llds"
        groups = max(r.group for r in rollouts) + 1
        size = groups // algorithm["updates_per_step"]
        losses, norms, masses, plain = [], [], [], []
        for first in range(0, groups, size):
            rows = [i for i, r in enumerate(rollouts) if first <= r.group < first + size]
            if not second_term and not any(advantages[i] for i in rows):
                self.updates += 1  # Left out, but its place in the schedule goes by.
                continue
            if losses and self.settings["resrl"]["refresh"] == "minibatch":
                with torch.no_grad():
                    _, hidden_BTH, _ = self._forward(rollouts)
                again_BT = self._token_weights(
                    rollouts, positive, masked, advantages, hidden_BTH, number
                )
                weights_BT[rows] = again_BT[rows]
            only = positive if algorithm["name"] == "rft" else [True] * len(rollouts)
            counted = [rollouts[i].count * (not masked[i] and only[i]) for i in rows]
            loss, mass, unweighted = torch.zeros(()), 0.0, 0.0
            new_BT, _, entropy_BT = self._forward([rollouts[i] for i in rows])
            for place, i in enumerate(rows):
                share = self._share(rollouts[i], counted)
                if masked[i]:
                    continue
                tokens = [t for t, drawn in enumerate(rollouts[i].drawn) if drawn]
                change = new_BT[place, tokens] - old_BT[i, tokens]
                if algorithm["name"] == "llds":
                    loss = loss + share * self._fall(change, advantages[i])
                loss = loss - share * entropy_coefficient * entropy_BT[place, tokens].sum()
                apart = self._divergence(new_BT[place, tokens] - start_BT[i, tokens], "k3")
                loss = loss + share * kl_coefficient * apart.sum()
                for t in tokens:
                    a = advantages[i]
                    a *= weights_BT[i, t] * (self._positive_weight() if positive[i] else 1.0)
                    if not positive[i]:
                        mass += share * abs(a)
                        unweighted += share * abs(advantages[i])
                    loss = loss + share * factor_BT[i][t] * self._token_loss(
                        new_BT[place, t],
                        float(old_BT[i, t]),
                        a,
                        change,
                        rollouts[i].engine_log_probs[t],
                    )
            norms.append(self._update(loss))
            losses.append(float(loss.detach()))
            masses.append(mass)
            plain.append(unweighted)
        names = ("loss", "grad_norm", "resrl/negative_mass", "resrl/negative_mass_unweighted")
        means = [float(np.mean(values)) for values in (losses, norms, masses, plain)]
        metrics = dict(zip(names, means, strict=True))
        metrics["reward/mean"] = float(np.mean([shaped_reward(r, self.settings) for r in rollouts]))
        return metrics, advantages, weights_BT

    def _start_log_probs(self, rollouts: Sequence[Rollout]) -> Tensor:
        """[B, T] under the weights that the run began with."""
        trained, self.model = self.model, self.start
        with torch.no_grad():
            found, _, _ = self._forward(rollouts)
        self.model = trained
        return found

    def _penalised(self, rollouts: Sequence[Rollout], start_BT: Tensor) -> list[Rollout]:
        """With what their rewards lose by the KL divergence from the start."""
        algorithm = self.settings["algorithm"]
        if algorithm["kl_in"] != "reward":
            return list(rollouts)
        found = []
        for i, r in enumerate(rollouts):
            apart = torch.tensor(r.engine_log_probs) - start_BT[i, : len(r.response)]
            apart = self._divergence(apart.double(), "k1")[torch.tensor(r.drawn)]
            found.append(replace(r, penalty=algorithm["kl_coefficient"] * float(apart.sum())))
        return found

    def _divergence(self, x: Tensor, default: str) -> Tensor:
        """Schulman's estimates of KL(pi, pi_start) from x = log pi - log pi_start."""
        estimator = self.settings["algorithm"]["kl_estimator"]
        estimator = default if estimator == "auto" else estimator
        return {"k1": x, "k2": x**2 / 2, "k3": (-x).exp() - 1 + x}[estimator]

    def _positive_weight(self) -> float:
        """Factor on the advantages of positives; w_reinforce has one in its advantages."""
        name = self.settings["algorithm"]["name"]
        if name == "resrl" or (self.weighting in OF_RESRL and name != "w_reinforce"):
            return self.settings["resrl"]["positive_weight"]
        return 1.0

    def _share(self, rollout: Rollout, counted: Sequence[int]) -> float:
        """Of a token in the mean over responses with so many tokens."""
        aggregation = self.settings["algorithm"]["aggregation"]
        if aggregation == "token_mean":
            return 1 / sum(counted)
        responses = sum(count > 0 for count in counted)
        if aggregation == "constant_length":
            return 1 / self.settings["rollout"]["max_response_length"] / responses
        return 1 / rollout.count / responses

    def _forward(self, rollouts: Sequence[Rollout]) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T] log p of the response tokens at the sampling temperature, [B, T, H] the tapped
        states that predict them, [B, T] entropies; zeros beyond a response's end."""
        rows = [torch.tensor((*r.prompt, *r.response)) for r in rollouts]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(tokens.shape[1]) < lengths[:, None]
        output = self.model(tokens, attention_mask=mask.long(), output_hidden_states=True)
        temperature = self.settings["rollout"]["temperature"]
        log_probs = (output.logits / temperature).log_softmax(-1)
        taken = log_probs[:, :-1].gather(2, tokens[:, 1:, None])[:, :, 0]
        hidden = output.hidden_states[self.settings["resrl"]["layer"]]
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        longest = max(len(r.response) for r in rollouts)
        taken_B, hidden_B, entropy_B = [], [], []
        for row, r in enumerate(rollouts):
            place = slice(len(r.prompt) - 1, len(r.prompt) - 1 + len(r.response))
            missing = longest - len(r.response)
            taken_B.append(torch.nn.functional.pad(taken[row, place], (0, missing)))
            hidden_B.append(torch.nn.functional.pad(hidden[row, place], (0, 0, 0, missing)))
            entropy_B.append(torch.nn.functional.pad(entropy[row, place], (0, missing)))
        return torch.stack(taken_B), torch.stack(hidden_B), torch.stack(entropy_B)

    def _token_weights(
        self,
        rollouts: Sequence[Rollout],
        positive: Sequence[bool],
        masked: Sequence[bool],
        advantages: Sequence[float],
        hidden_BTH: Tensor,
        step: int,
    ) -> np.ndarray:
        """[B, T] 1 where nothing applies."""
        hidden = hidden_BTH.double().numpy()
        weights = np.ones(hidden.shape[:2])
        if self.weighting not in OF_RESRL:
            for i, r in enumerate(rollouts):
                found = weights_by_probability(r, positive[i], self.settings["algorithm"])
                weights[i, : len(found)] = found
            return weights
        resrl = self.settings["resrl"]
        thought = [self._thought(r) for r in rollouts]
        for group in {r.group for r in rollouts}:
            right, wrong = (
                [
                    (i, t)
                    for i, r in enumerate(rollouts)
                    if r.group == group and not masked[i] and positive[i] == side
                    for t, drawn in enumerate(r.drawn)
                    if drawn and not thought[i][t]
                ]
                for side in (True, False)
            )
            if len(right) < 4 or not wrong:
                continue
            key = group_key(self.settings["seed"], step, group)
            generator = torch.Generator().manual_seed(key)
            if len(right) > resrl["max_positive_tokens"]:
                order = torch.randperm(len(right), generator=generator)
                right = [right[k] for k in order[: resrl["max_positive_tokens"]]]
            found = residual_weights(
                *(np.stack([hidden[i, t] for i, t in side]) for side in (right, wrong)), resrl
            )
            share = [abs(advantages[i]) * self._part(rollouts[i]) for i, _ in wrong]
            if self.weighting == "constant":
                found = np.full(
                    len(wrong), np.average(found, weights=share if any(share) else None)
                )
            elif self.weighting == "random":
                found = random_weights(found, np.array(share), key, resrl["floor"])
            elif self.weighting == "inverted":
                found = 1 + resrl["floor"] - found
            for (i, t), weight in zip(wrong, found, strict=True):
                weights[i, t] = weight
        for i in range(len(rollouts)):
            if not positive[i]:
                weights[i, : len(thought[i])][thought[i]] = 0.0
        return weights

    def _part(self, rollout: Rollout) -> float:
        """What one token of a response counts, up to a factor that all responses share."""
        by_token = self.settings["algorithm"]["aggregation"] != "sequence_mean"
        return 1.0 if by_token else 1 / rollout.count

    def _thought(self, rollout: Rollout) -> np.ndarray:
        """[response tokens] bool: between the think markers, which belong to it."""
        inside, found = False, []
        for token in (*rollout.prompt, *rollout.response):
            if self.markers and token == self.markers[0]:
                inside = True
            found.append(inside)
            if self.markers and token == self.markers[1]:
                inside = False
        return np.array(found[len(rollout.prompt) :], dtype=bool)

    def _corrections(self, rollouts: Sequence[Rollout], old_BT: Tensor) -> list[list[float]]:
        """[B][tokens] factors on the loss."""
        correction = self.settings["correction"]
        factors = []
        for row, r in enumerate(rollouts):
            log_ratio = old_BT[row, : len(r.response)].double().numpy() - r.engine_log_probs
            log_ratio = np.where(r.drawn, log_ratio, 0.0)
            if correction["method"] == "none":
                found = np.ones(len(r.response))
            elif correction["method"] == "icepop":
                ratio = np.exp(log_ratio)
                low, high = correction["band"]
                found = np.where((ratio >= low) & (ratio <= high), ratio, 0.0)
                self._near(log_ratio, np.log(low), np.log(high))
            else:
                if correction["method"] == "sequence_tis":
                    log_ratio = np.full(len(r.response), log_ratio.sum())
                found = np.minimum(np.exp(log_ratio), correction["cap"])
            factors.append(found.tolist())
        return factors

    def _near(self, values: Any, *bounds: float) -> None:
        for bound in bounds:
            self.margin = min(self.margin, float(np.abs(np.asarray(values) - bound).min()))

    def _fall(self, change_n: Tensor, advantage: float) -> Tensor:
        """LLDS's term of one response: the falls of its tokens, if it fell altogether."""
        options = self.settings["algorithm"]["options"]
        limit = options.get("likelihood_tolerance", 1e-3)
        fell = -change_n > limit
        self._near(change_n.detach().numpy(), -limit)
        if advantage < 0 or not fell.any():
            return torch.zeros(())
        self._near(float(change_n.detach().sum()), 0.0)
        gate = float(change_n.detach().sum() < 0)
        return options.get("likelihood_coefficient", 0.1) * gate * -change_n[fell].sum()

    def _token_loss(
        self, new: Tensor, old: float, advantage: float, change_n: Tensor, engine: float
    ) -> Tensor:
        """-min(r A, clip(r) A), and for A < 0 at most -dual_clip A; r of the token, or with gspo of
        the response. With cispo -clip(r) A log p, clip(r) a constant."""
        algorithm = dict(self.settings["algorithm"])
        options, name = algorithm["options"], algorithm["name"]
        if name == "rft":
            return -advantage * new
        if name == "sapo":
            tau = options["tau_positive" if advantage > 0 else "tau_negative"]
            return -advantage * 4 / tau / (1 + (-tau * ((new - old).exp() - 1)).exp())
        if name == "gmpo":
            return -advantage * self._geometric_mean(change_n, advantage)
        if name == "dppo":
            return self._within_divergence(new, old, advantage, engine)
        if name in ("cispo", "gspo", "gspo_token"):
            algorithm |= options
        low, high = 1 - algorithm["clip_low"], 1 + algorithm["clip_high"]
        if algorithm["name"] == "cispo":
            return -float((new.detach() - old).exp().clamp(low, high)) * advantage * new
        if name == "gspo":
            new, old = change_n.mean(), 0.0
        if name == "gspo_token":
            new, old = float(change_n.detach().mean()) + new - new.detach(), 0.0
        ratio = (new - old).exp()
        objective = torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
        log_ratio = float(new.detach()) - old
        if advantage < 0 and algorithm["dual_clip"] is not None:
            objective = objective.clamp_min(algorithm["dual_clip"] * advantage)
            self._near(log_ratio, np.log(algorithm["dual_clip"]))
        if advantage:
            self._near(log_ratio, np.log(low if advantage < 0 else high))
        return -objective

    def _geometric_mean(self, change_n: Tensor, advantage: float) -> Tensor:
        """GMPO's ratio of a response, whose tokens are clipped in the direction of the update."""
        options = self.settings["algorithm"]["options"]
        if advantage < 0:
            self._near(change_n.detach().numpy(), -options["clip_low"])
            return change_n.clamp(min=-options["clip_low"]).mean().exp()
        self._near(change_n.detach().numpy(), options["clip_high"])
        return change_n.clamp(max=options["clip_high"]).mean().exp()

    def _within_divergence(
        self, new: Tensor, old: float, advantage: float, engine: float
    ) -> Tensor:
        """DPPO's loss: masked where the update leads further away than a limit."""
        options = self.settings["algorithm"]["options"]
        anchor = engine if options.get("anchor") == "engine" else old
        p, q = float(new.detach().double().exp()), float(np.exp(anchor))
        limit = options["clip_high" if advantage > 0 else "clip_low"]
        apart = abs(p - q)
        if options.get("divergence") == "kl":
            apart = q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))
        self._near(np.log(max(apart, 1e-30)), np.log(limit))
        if apart > limit and (p - q) * advantage > 0:
            return 0.0 * new
        return -min(p / q, options.get("ratio_cap", 20.0)) * advantage * new

    def _update(self, loss: Tensor) -> float:
        """One step of AdamW on clipped gradients. Returns their norm before that."""
        self.updates += 1
        for group in self.adam.param_groups:
            group["lr"] = self._learning_rate()
        self.adam.zero_grad()
        loss.backward()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = float(sum(g.double().square().sum() for g in gradients) ** 0.5)
        limit = self.settings["optimizer"]["clip_grad"]
        if 0 < limit < norm:
            for gradient in gradients:
                gradient *= limit / (norm + 1e-6)
        self.adam.step()
        return norm

    def _learning_rate(self) -> float:
        """Linear warm-up, then constant or a linear or cosine decay to `min_lr`."""
        numbers = self.settings["optimizer"]
        lr, least, warm_up = numbers["lr"], numbers["min_lr"], numbers["lr_warmup_steps"]
        if self.updates <= warm_up:
            return lr * self.updates / warm_up
        length = max(numbers["lr_decay_steps"] or self.planned, warm_up + 1)
        if numbers["lr_decay_style"] == "constant":
            return lr
        done = min(1.0, (self.updates - warm_up) / (length - warm_up))
        if numbers["lr_decay_style"] == "linear":
            return least + (lr - least) * (1 - done)
        return least + (lr - least) * 0.5 * (1 + np.cos(np.pi * done))
