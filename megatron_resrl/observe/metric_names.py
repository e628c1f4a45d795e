"""Every metric that a run can log: its name, meaning and unit. `docs/metrics.md` is made from it.

Means over tokens or responses are over all data-parallel replicas. Logarithms are natural.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Metric(NamedTuple):
    """What is known of a metric."""

    meaning: str
    """One sentence or less, in Markdown."""
    unit: str
    """`share` lies between 0 and 1; `-` has no unit."""


METRICS = {
    "step": Metric("training step; 0 is the evaluation before the first", "-"),
    "time": Metric("when the line was written", "seconds since 1970"),
    "loss": Metric(
        "the objective that was minimised, mean over the step's updates; of `pretrain` and `sft` "
        "the cross-entropy alone, in nats per target",
        "-",
    ),
    "z_loss": Metric("what the squared log-normalisers add to the objective", "-"),
    "moe_aux_loss": Metric(
        "the loss that balances experts, without its coefficient; 1: all experts get as much", "-"
    ),
    "targets": Metric("of `pretrain` and `sft`: tokens that the loss is the mean over", "tokens"),
    "batch_size": Metric("of a step of `pretrain`", "sequences"),
    "consumed_tokens": Metric("fed to the model in all steps so far of `pretrain`", "tokens"),
    "grad_norm": Metric("global norm before clipping, mean over updates", "-"),
    "learning_rate": Metric(
        "of the step's last update; updates that are left out move the schedule, too", "-"
    ),
    "approx_kl": Metric(
        "k3 estimate of KL(policy before the step, policy being updated), mean over the tokens of "
        "responses with a loss; with `gspo` and `gspo_token` of the ratios of responses",
        "nats per token",
    ),
    "entropy": Metric(
        "of the policy's distribution at the generated tokens, before the update", "nats per token"
    ),
    "entropy_bonus": Metric("what `entropy_coefficient` takes off the loss", "-"),
    "clip_fraction/low": Metric(
        "tokens whose ratio (with `cispo`: weight; with `dppo`: divergence) was clipped from below",
        "share",
    ),
    "clip_fraction/high": Metric("the same from above", "share"),
    "clip_fraction/dual": Metric(
        "tokens whose ratio was clipped by `algorithm.dual_clip`", "share"
    ),
    "likelihood/term": Metric("with `llds`: the second term of the loss", "-"),
    "likelihood/penalised_fraction": Metric("with `llds`: tokens that the term acts on", "share"),
    "update/applied": Metric("optimizer steps that were taken", "updates"),
    "update/not_finite": Metric("left out because a gradient was not finite", "updates"),
    "update/without_signal": Metric("left out because all advantages were 0", "updates"),
    "data/epoch": Metric(
        "how often all training questions, or sequences, have been used, those in flight included",
        "epochs",
    ),
    "data/tokens": Metric("of `sft`: tokens of the step's conversations", "tokens"),
    "reward/mean": Metric("of all responses, with length scaling and penalties", "reward"),
    "reward/score_mean": Metric("the verifier's score, without them", "score"),
    "reward/<function>/mean": Metric(
        "with `reward.functions`: scores by one of them, without its weight, over the responses "
        "that it judges",
        "score",
    ),
    "reward/timeouts": Metric(
        "responses whose grading took longer than `reward.timeout_s`; they score 0", "responses"
    ),
    "reward/unanswered": Metric(
        "with the rewards `remote` and `judge`: responses that got no score, or nonsense in its "
        "place; they score 0",
        "responses",
    ),
    "reward/killed": Metric(
        "responses whose grading took more than `reward.memory_gb`, or whose grader the system "
        "killed; they score 0",
        "responses",
    ),
    "rollout/nonzero_advantage_groups": Metric("groups whose advantages are not all 0", "share"),
    "reward/mean_before_refill": Metric(
        "of the step's own prompts, before dynamic sampling replaced any", "reward"
    ),
    "reward/overlong_masked": Metric(
        "responses without a loss because of `reward.overlong: mask`", "share"
    ),
    "reward/overlong_penalty_mean": Metric(
        "penalty of `reward.overlong: penalize`, mean over responses", "reward"
    ),
    "response/length_mean": Metric("generated tokens, over all turns", "tokens"),
    "response/length_max": Metric("the same of the longest response", "tokens"),
    "response/length_mean_before_refill": Metric(
        "of the step's own prompts, before dynamic sampling replaced any", "tokens"
    ),
    "response/truncated": Metric(
        "responses that `rollout.max_response_length` or `rollout.max_turns` ended", "share"
    ),
    "rollout/groups_without_signal": Metric("groups of the step whose advantages are 0", "groups"),
    "rollout/groups_generated": Metric("groups generated for the step", "groups"),
    "rollout/refill_rounds": Metric("rounds of dynamic sampling", "rounds"),
    "rollout/staleness_mean": Metric(
        "updates between the weights that generated a response's first token and those being "
        "trained",
        "updates",
    ),
    "rollout/staleness_max": Metric("the same of the stalest response", "updates"),
    "rollout/mixed_version_fraction": Metric(
        "responses that more than one version of the weights generated", "share"
    ),
    "episode/turns_mean": Metric("turns of the policy, with `rollout.environment`", "turns"),
    "episode/turns_max": Metric("the same of the longest episode", "turns"),
    "episode/observations_mean": Metric("messages of the environment", "messages"),
    "episode/observation_tokens_mean": Metric("tokens of these messages", "tokens"),
    "episode/failed": Metric(
        "episodes whose environment failed, with `rollout.environment_failure: zero`", "share"
    ),
    "episode/failed_raised": Metric("those whose environment raised", "share"),
    "episode/failed_malformed": Metric("those that got no observation as it should be", "share"),
    "episode/failed_late": Metric("those that were not answered in time", "share"),
    "episode/failed_crashed": Metric("those whose environment ended its process", "share"),
    "step/passes": Metric(
        "forward passes of a response that has a loss, those of `resrl.refresh` not counted",
        "passes",
    ),
    "step/padding": Metric("padding in the positions that updates feed the model", "share"),
    "step/shared_prompt_tokens": Metric(
        "tokens that updates need not feed the model again, because responses share their prompt; "
        "of `sft`, because conversations share their beginning",
        "tokens",
    ),
    "step/imbalance": Metric(
        "floating-point operations of the busiest replica's updates over the mean", "-"
    ),
    "reference/kl": Metric(
        "with `algorithm.kl_coefficient`: KL(policy before the step, reference), k3 estimate, mean "
        "over the generated tokens; with `kl_in: reward` the policy's log-probabilities are the "
        "engine's",
        "nats per token",
    ),
    "reference/loss": Metric(
        "with `algorithm.kl_in: loss`: what the penalty adds to the loss", "-"
    ),
    "reference/reward_penalty": Metric(
        "with `algorithm.kl_in: reward`: what the penalty takes off a reward, mean over responses",
        "reward",
    ),
    "distillation/reverse_kl": Metric(
        "with `distillation`: log-probability of the policy before the step less the teacher's, "
        "mean over the generated tokens",
        "nats per token",
    ),
    "mismatch/log_prob_mean": Metric(
        "absolute difference of log-probabilities between engine and trainer", "nats"
    ),
    "mismatch/log_prob_max": Metric("the largest of them", "nats"),
    "mismatch/probability_mean": Metric("absolute difference of probabilities", "-"),
    "mismatch/probability_max": Metric("the largest of them", "-"),
    "mismatch/kl": Metric("KL(engine, trainer), k3 estimate", "nats per token"),
    "mismatch/ess": Metric(
        "effective sample size of the ratios trainer / engine, of tokens", "share"
    ),
    "mismatch/ess_sequence": Metric("the same of whole responses", "share"),
    "correction/factor_mean": Metric("mean importance weight on the loss", "-"),
    "correction/clipped": Metric(
        "tokens whose importance weight is above the cap or outside the band", "share"
    ),
    "resrl/groups": Metric("groups that were looked at", "groups"),
    "resrl/skipped_fraction": Metric("groups whose token weights are all 1", "share"),
    "resrl/skipped_no_positive": Metric("of these: groups without a positive response", "share"),
    "resrl/skipped_no_negative": Metric("groups without a negative response", "share"),
    "resrl/skipped_few_positive_tokens": Metric(
        "groups with fewer than 4 positive tokens", "share"
    ),
    "resrl/degenerate_fraction": Metric(
        "groups whose quantiles coincide, so that all weights are the middle one", "share"
    ),
    "resrl/mean_weight": Metric("token weight, mean over tokens of negative responses", "-"),
    "resrl/residual_q_low": Metric("residual at the lower quantile, mean over groups", "-"),
    "resrl/residual_q_high": Metric("residual at the upper quantile, mean over groups", "-"),
    "resrl/energy": Metric("share of the positives' energy that the subspace holds", "share"),
    "resrl/rank": Metric("directions of the subspace, mean over groups", "dimensions"),
    "resrl/negative_mass": Metric(
        "sum of c_i abs(A_it) over tokens of incorrect responses, token weights included", "-"
    ),
    "resrl/negative_mass_unweighted": Metric("the same without token weights", "-"),
    "resrl/negative_mass_share": Metric("the first over the second", "share"),
    "resrl/peak_bytes": Metric(
        "memory for states, statistics and bases of the scoring pass, largest rank", "bytes"
    ),
    "resrl/sent_bytes": Metric("payload that the pass sent, largest rank", "bytes"),
    "resrl/method_is_gram": Metric("1: method `gram`; 0: `rows`", "-"),
    "resrl/spectrum_top_energy": Metric("the first direction's share of the energy", "share"),
    "resrl/spectrum_condition": Metric("largest over smallest singular value used", "-"),
    "resrl/spectrum_effective_rank": Metric("exp(entropy) of the captured spectrum", "dimensions"),
    "nthr/compared_fraction": Metric("groups with correct and incorrect responses", "share"),
    "nthr/mean_weight": Metric(
        "token weight, mean over the incorrect tokens of a compared group, and over these groups",
        "-",
    ),
    "shear/compared_fraction": Metric("groups that have correct and incorrect responses", "share"),
    "shear/mean_weight_correct": Metric(
        "token weight, mean over tokens of correct responses, then over compared groups", "-"
    ),
    "shear/mean_weight_incorrect": Metric("the same of incorrect responses", "-"),
    "thr/compared_fraction": Metric("groups with correct and incorrect responses", "share"),
    "thr/mean_weight_correct": Metric(
        "token weight, mean over tokens of correct responses, then over compared groups", "-"
    ),
    "thr/mean_weight_incorrect": Metric("the same of incorrect responses", "-"),
    "lld/log_likelihood_change": Metric(
        "change of the log-likelihood of correct responses over the step, per response; below 0: "
        "displaced",
        "nats",
    ),
    "lld/log_prob_change": Metric("the same per token", "nats"),
    "lld/displaced_fraction": Metric("correct responses whose likelihood fell", "share"),
    "interference/representation": Metric(
        "mean abs inner product of the states of positive and negative tokens", "-"
    ),
    "interference/representation_weighted": Metric("the same, times token weights", "-"),
    "interference/representation_cosine": Metric("mean abs cosine of the states", "share"),
    "interference/reduction": Metric("weighted over plain", "-"),
    "interference/reduction_to_constant": Metric(
        "weighted over plain with one constant weight of the same mean; below 1: small weights lie "
        "on the tokens that interfere most",
        "-",
    ),
    "interference/gradient": Metric(
        "mean abs inner product of the output matrix's gradients (`resrl.logit_factor`)", "-"
    ),
    "interference/gradient_weighted": Metric("the same, times token weights", "-"),
    "interference/gradient_signed": Metric("the same with its sign", "-"),
    "interference/gradient_signed_weighted": Metric("with its sign, times token weights", "-"),
    "interference/gradient_reduction": Metric("weighted over plain", "-"),
    "health/loss_deviations": Metric(
        "robust standard deviations of the loss above the median of the last `health.window` "
        "steps; more than `health.deviations` is a spike",
        "deviations",
    ),
    "health/grad_norm_deviations": Metric("the same of the gradient's norm", "deviations"),
    "health/reward_share": Metric(
        "the verifier's score over that of the `health.window` steps before; below "
        "`health.reward_share`: collapsed",
        "-",
    ),
    "health/entropy_share": Metric(
        "entropy over that of the run's first `health.window` steps; below "
        "`health.entropy_share`: collapsed",
        "-",
    ),
    "health/rollbacks": Metric(
        "how often the run has gone back to a checkpoint, if it has", "rollbacks"
    ),
    "straggler/rank": Metric(
        "the rank that the others wait for longest in a phase, waits of its own not counted", "rank"
    ),
    "straggler/wait_seconds": Metric(
        "its own time in this phase above that of the median rank of its pipeline stage", "seconds"
    ),
    "straggler/<phase>_ratio": Metric(
        "own time of the slowest rank in a phase over that of the median rank", "-"
    ),
    "memory/peak_bytes": Metric(
        "most memory since the step before, largest rank: on CUDA what torch's allocator gave out "
        "on the device, else the resident set of the rank's process",
        "bytes",
    ),
    "memory/rank": Metric("the rank that took it", "rank"),
    "memory/<phase>_peak_bytes": Metric(
        "the same of a phase; `save` is the time for which the checkpoint of the step before "
        "blocked training. Not there where the system cannot set a peak back",
        "bytes",
    ),
    "sync/seconds": Metric("transfer of the weights to rollout servers", "seconds"),
    "sync/gb_per_s": Metric("its speed: all weights over its time, however they were sent", "GB/s"),
    "sync/bytes": Metric("bytes that each rollout server got by it", "bytes"),
    "sync/changed_fraction": Metric(
        "bytes of the weights that differ from those sent before, if they were compared", "share"
    ),
    "sync/servers": Metric("servers that got the weights", "servers"),
    "sync/failed_servers": Metric("servers that did not get the weights", "servers"),
    "eval/<set>/avg@<n>": Metric(
        "mean score of n responses per question of the set, mean over questions", "score"
    ),
    "eval/<set>/pass@<k>": Metric("unbiased estimate that one of k responses is correct", "share"),
    "eval/<set>/pass^<k>": Metric("unbiased estimate that all of k responses are correct", "share"),
    "eval/<set>/cons@<k>": Metric(
        "unbiased estimate that the answer of most of k responses is correct", "share"
    ),
    "eval/<set>/distinct_answers": Metric(
        "different answers to a question, mean over questions", "answers"
    ),
    "eval/<set>/distinct-<n>": Metric(
        "different word n-grams over all n-grams of the responses to a question, mean over "
        "questions",
        "share",
    ),
    "eval/<set>/response_length": Metric("mean length of the responses", "tokens"),
    "eval/<set>/questions": Metric("questions in the averages", "questions"),
    "eval/<set>/dropped": Metric("questions left out, too long or without answer", "questions"),
    "eval/<set>/timeouts": Metric("responses not graded in time; they score 0", "responses"),
    "eval/<set>/loss": Metric(
        "of `pretrain` and `sft`: cross-entropy of the set's targets", "nats per target"
    ),
    "eval/<set>/perplexity": Metric("its exponential", "-"),
    "eval/<set>/targets": Metric("tokens that it is the mean over", "tokens"),
    "eval/<set>/truncated": Metric("responses cut off at the length limit", "share"),
    "eval/<set>/reward/<function>/mean": Metric(
        "with several functions: scores by one of them, without its weight, over the responses "
        "that it judges",
        "score",
    ),
    "tokens_per_second": Metric("fed to the model, all ranks together", "tokens/s"),
    "model_tflops_per_gpu": Metric(
        "operations of the model, forward and backward, without recomputation", "TFLOP/s"
    ),
    "mfu": Metric("their share of the device's peak", "share"),
    "time/step": Metric("the whole step, sum of the phases", "seconds"),
    "time/data": Metric("reading sequences", "seconds"),
    "time/rollout": Metric("generating", "seconds"),
    "time/reward": Metric("grading after the last response", "seconds"),
    "time/scoring": Metric("the scoring pass, and that of a reference", "seconds"),
    "time/subspace": Metric("bases and token weights", "seconds"),
    "time/update": Metric("updates", "seconds"),
    "time/sync": Metric("weights to the engine", "seconds"),
    "time/evaluation": Metric("evaluation, in steps that have one", "seconds"),
    "time/diagnosis": Metric("diagnosis, in steps that have one", "seconds"),
    "time/other": Metric("the rest", "seconds"),
    "time/checkpoint_blocking": Metric(
        "what checkpoints since the last step took from training; not in `time/step`", "seconds"
    ),
    "time/checkpoint_write": Metric("writing beside training; not in `time/step`", "seconds"),
}
"""Name -> meaning and unit. Parts in angle brackets stand for a name or number of the run."""

_PLACEHOLDER = re.compile(r"<\w+>")


def find_metric(name: str) -> Metric | None:
    """What is known of a metric as a run logs it, e.g. `eval/aime24/avg@16`; None: nothing."""
    if name in METRICS:
        return METRICS[name]
    return next((each for key, each in METRICS.items() if _pattern(key).fullmatch(name)), None)


def metrics_table() -> str:
    """All metrics as a table in Markdown, in the order of `METRICS`."""
    lines = ["| metric | meaning | unit |", "|---|---|---|"]
    lines += [f"| `{name}` | {each.meaning} | {each.unit} |" for name, each in METRICS.items()]
    return "\n".join(lines) + "\n"


def _pattern(key: str) -> re.Pattern[str]:
    return re.compile(".+".join(re.escape(part) for part in _PLACEHOLDER.split(key)))
