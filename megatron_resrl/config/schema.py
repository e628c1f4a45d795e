"""Every setting of a run: one frozen dataclass per section, a docstring under each field.

Names are Megatron's and the papers'. Fields of megatron-core's own config classes that are not
named here pass through the `megatron` and `ddp` dictionaries unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from megatron_resrl.config.ranges import (
    BELOW_ONE,
    PROBABILITY,
    Range,
    RisingPair,
    above,
    at_least,
    between,
)
from megatron_resrl.config.schema_health import HealthConfig
from megatron_resrl.config.schema_questions import DataConfig, EvaluationConfig, RewardConfig
from megatron_resrl.config.schema_rollout import CorrectionConfig, RolloutConfig, VllmConfig
from megatron_resrl.config.schema_teacher import TeacherConfig

WhenExact = Literal["auto", "always", "never"]
"""`auto`: where the result is the same; `always`: refuse a run where it is not."""


@dataclass(frozen=True)
class ModelConfig:
    """The policy's weights and what differs from the Hugging Face configuration."""

    path: str = ""
    """Directory of a Hugging Face model: config.json, *.safetensors and tokenizer files; or of
    one that tools/convert_hf_to_megatron.py made, a run or Megatron-LM."""
    tokenizer_path: str | None = None
    """Directory of the tokenizer; default: `path`. A checkpoint of Megatron-LM has none."""
    attention_dropout: Annotated[float, BELOW_ONE] = 0.0
    """Probability of dropping an attention weight (megatron-core `attention_dropout`)."""
    hidden_dropout: Annotated[float, BELOW_ONE] = 0.0
    """Probability of dropping a residual-branch output (megatron-core `hidden_dropout`)."""
    recompute_granularity: Literal["full", "selective"] | None = None
    """Activation recomputation: whole layers, or core attention only (Megatron's meaning)."""
    recompute_method: Literal["uniform", "block"] | None = None
    """How layers are grouped under full recomputation."""
    recompute_num_layers: Annotated[int | None, at_least(1)] = None
    """Layers per recomputed group (uniform) or recomputed layers per stage (block)."""
    megatron: dict[str, Any] = field(default_factory=dict)
    """Other fields of megatron-core's `TransformerConfig`, passed through unchanged."""


@dataclass(frozen=True)
class ParallelConfig:
    """How ranks share the model. data_parallel_size = world size / (TP x PP x CP); experts are
    split over ranks of one pipeline stage that exist anyway."""

    tensor_model_parallel_size: Annotated[int, at_least(1)] = 1
    """Ranks over which each layer's matrices are split."""
    pipeline_model_parallel_size: Annotated[int, at_least(1)] = 1
    """Ranks over which the layers are split into stages."""
    virtual_pipeline_model_parallel_size: Annotated[int | None, at_least(1)] = None
    """Model chunks per pipeline rank (interleaved 1F1B); None: one chunk."""
    context_parallel_size: Annotated[int, at_least(1)] = 1
    """Ranks over which each sequence is split."""
    expert_model_parallel_size: Annotated[int, at_least(1)] = 1
    """Ranks over which the experts of a mixture-of-experts model are split."""
    expert_tensor_parallel_size: Annotated[int | None, at_least(1)] = None
    """Ranks over which each expert's matrices are split; default: megatron-core's, which is
    `tensor_model_parallel_size`."""
    sequence_parallel: bool = False
    """Split the tokens between tensor-parallel regions (needs TP > 1)."""
    use_distributed_optimizer: bool = True
    """Shard optimizer states over data-parallel ranks."""
    timeout_minutes: Annotated[float, above(0)] = 30.0
    """A collective that takes longer ends the run and names the phase."""
    ddp: dict[str, Any] = field(default_factory=dict)
    """Other fields of megatron-core's `DistributedDataParallelConfig`, passed through."""


@dataclass(frozen=True)
class PrecisionConfig:
    """Number formats."""

    params_dtype: Literal["fp32", "bf16"] = "bf16"
    """Type of weights and activations; gradients and optimizer states stay fp32."""
    fp8: Literal["hybrid", "e4m3"] | None = None
    """FP8 matrix multiplications through Transformer Engine (needs CUDA); None: off."""
    fp8_recipe: Literal["delayed", "tensorwise", "blockwise", "mxfp8"] = "tensorwise"
    """Scaling recipe of Transformer Engine; mxfp8 needs Blackwell."""
    num_layers_at_start_in_bf16: Annotated[int, at_least(0)] = 0
    """First layers of the model that stay in `params_dtype` while the others compute in FP8
    (megatron-core's `first_last_layers_bf16`); not with the delayed recipe."""
    num_layers_at_end_in_bf16: Annotated[int, at_least(0)] = 0
    """Likewise the last layers."""
    deterministic: bool = False
    """Use only algorithms that compute the same bits each time (torch's, NCCL's, cuBLAS's and
    Transformer Engine's switches; megatron-core's `deterministic_mode`). A run that is resumed then
    goes on to the same bits on GPUs, too, and is slower; an operation that has no such algorithm
    ends it. On CPUs the bits are the same anyway."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam with decoupled weight decay, and the learning-rate schedule in optimizer steps."""

    lr: Annotated[float, above(0)] = 1e-6
    """Peak learning rate (paper: 1e-6)."""
    min_lr: Annotated[float, at_least(0)] = 0.0
    """Learning rate at the end of the decay."""
    lr_decay_style: Literal["constant", "linear", "cosine", "WSD"] = "constant"
    """Shape of the decay after the warm-up. WSD (warm-up, stable, decay): constant until the last
    `lr_wsd_decay_steps`."""
    lr_warmup_steps: Annotated[int, at_least(0)] = 10
    """Optimizer steps of linear warm-up (paper: 10)."""
    lr_decay_steps: Annotated[int | None, at_least(1)] = None
    """Optimizer steps until `min_lr`; default: the whole run."""
    lr_wsd_decay_style: Literal["linear", "cosine", "exponential", "minus_sqrt"] = "linear"
    """Shape of the decay at the end of a WSD schedule (megatron-core's names)."""
    lr_wsd_decay_steps: Annotated[int | None, at_least(1)] = None
    """Optimizer steps of the decay at the end of a WSD schedule, which needs them."""
    weight_decay: Annotated[float, at_least(0)] = 0.1
    """Decoupled weight decay (paper: 0.1)."""
    adam_beta1: Annotated[float, BELOW_ONE] = 0.9
    """Decay of the first moment."""
    adam_beta2: Annotated[float, BELOW_ONE] = 0.999
    """Decay of the second moment."""
    adam_eps: Annotated[float, above(0)] = 1e-8
    """Added to the root of the second moment."""
    clip_grad: Annotated[float, at_least(0)] = 1.0
    """Largest global gradient norm; 0: no clipping."""
    non_finite: Literal["skip", "stop", "rollback"] = "skip"
    """What a loss or gradient that is not finite leads to, on all ranks: `skip` and `rollback`
    leave its update out; `stop` ends the run before the step is saved."""
    max_non_finite: Annotated[int, at_least(1)] = 10
    """So many steps in a row with such an update end the run with `skip`, like `stop`; with
    `rollback` the run goes back to a checkpoint and skips their data, see the section `health`."""
    megatron: dict[str, Any] = field(default_factory=dict)
    """Other fields of megatron-core's `OptimizerConfig`, passed through unchanged."""


@dataclass(frozen=True)
class AlgorithmConfig:
    """The policy-gradient objective."""

    name: str = "resrl"
    """Name of an algorithm, or `path.py:name` of an `Algorithm` of your own. Clipped like PPO:
    resrl, grpo, dr_grpo, rloo, reinforce_pp, reinforce_pp_baseline; only correct or incorrect
    responses: psr, nsr, w_reinforce, rft; losses of their own: gspo, gspo_token, gmpo, cispo, sapo,
    dppo, llds, lens. Learning from a teacher: distillation."""
    weighting: str = "auto"
    """Factor on the advantages of tokens, with any algorithm: `none`; `resrl`, the method as the
    section `resrl` sets it up; its controls `constant`, `random` and `inverted`; another, such as
    `shear`, that `megatron-resrl algorithms` lists; or `path.py:name` of a `TokenWeighting` of your
    own. `auto`: of the algorithm resrl what `resrl.weights` names, of all others none."""
    weighting_options: dict[str, Any] = field(default_factory=dict)
    """Options of that weighting, which `megatron-resrl algorithms` lists; those of ResRL are the
    section `resrl`."""
    clip_low: Annotated[float, Range(0, 1, low_included=False, high_included=False)] = 0.2
    """PPO clip: smallest ratio is 1 - clip_low."""
    clip_high: Annotated[float, above(0)] = 0.2
    """PPO clip: largest ratio is 1 + clip_high."""
    dual_clip: Annotated[float | None, above(1)] = None
    """Bound on the ratio of tokens with a negative advantage (> 1); None: off."""
    kl_coefficient: Annotated[float, at_least(0)] = 0.0
    """Factor of a penalty on the KL divergence of the policy from the weights that the run began
    with, which stay on host memory; 0: none. One more forward pass per step."""
    kl_estimator: Literal["auto", "k1", "k2", "k3"] = "auto"
    """Of x = log pi - log pi_ref of each token: k1 = x; k2 = x^2 / 2; k3 = exp(-x) - 1 + x. `auto`:
    k3 in the loss, k1 in the reward. In the loss k1 is no penalty: its gradient is 0 on average."""
    kl_in: Literal["loss", "reward"] = "loss"
    """`loss`: the mean over tokens, as `aggregation` says, is added to the loss (GRPO). `reward`:
    the sum over a response's tokens is taken off its reward before advantages are made (RLOO)."""
    aggregation: Literal["sequence_mean", "token_mean", "constant_length"] = "sequence_mean"
    """`sequence_mean`: mean over a response's tokens, then over responses (paper); `token_mean`:
    mean over all tokens; `constant_length`: sum over a response's tokens divided by
    `rollout.max_response_length`, then mean over responses (Dr.GRPO)."""
    updates_per_step: Annotated[int, at_least(1)] = 1
    """Mini-batches (optimizer steps) per step; `prompts_per_step` is divided by it (paper: 4; with
    1 every ratio is 1 and nothing is clipped)."""
    mini_batches: Literal["as_sampled", "balanced"] = "as_sampled"
    """Which groups share a mini-batch, where a step has several. `as_sampled`: neighbours;
    `balanced`: such that positive and negative responses are as even in all of them (arXiv
    2605.08666). Groups are whole either way."""
    single_pass: WhenExact = "auto"
    """Make the old log-probs and the token weights in the update itself, so that a response with a
    loss goes through the policy once and not twice. `auto`: where the result is the same; `always`:
    refuse a run where it is not. `never`: a scoring pass before the updates of every step."""
    micro_batch_size: Annotated[int, at_least(1)] = 4
    """Most responses of a micro-batch of one data-parallel rank."""
    max_tokens_per_micro_batch: Annotated[int | None, at_least(1)] = None
    """Most positions of an update's micro-batch, padding included; None: any number. Responses are
    packed first-fit decreasing. With a large `micro_batch_size` tokens alone decide."""
    max_tokens_per_scoring_micro_batch: Annotated[int | None, at_least(1)] = None
    """The same for scoring passes, which hold less; None: as for updates."""
    sequence_packing: bool = False
    """Put the responses of a micro-batch behind each other instead of padding them."""
    shared_prompts: WhenExact = "auto"
    """Feed the policy a prompt once for all of its responses in a micro-batch, which then stand
    behind each other. `auto`: where the result is the same; `always`: refuse a run where it is not.
    `never`: every response carries its own copy."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the algorithm itself, which `megatron-resrl algorithms` lists. All have
    `entropy_coefficient` (default 0; above: an entropy bonus)."""


@dataclass(frozen=True)
class ResrlConfig:
    """The subspace of correct answers and the weights of wrong ones (arXiv 2605.00380)."""

    rank: Annotated[int, at_least(1)] = 64
    """Dimensions kept of the positives' subspace (k)."""
    max_positive_tokens: Annotated[int, at_least(4)] = 4096
    """Positive tokens sampled per group (M)."""
    quantiles: Annotated[tuple[float, float], RisingPair(0, 1)] = (0.2, 0.8)
    """Quantiles of the negatives' residuals mapped to the smallest and to full weight."""
    floor: Annotated[float, PROBABILITY] = 0.1
    """The smallest weight (xi)."""
    positive_weight: Annotated[float, at_least(0)] = 0.1
    """Factor on the advantages of positive responses, with ResRL's weights or controls."""
    positives: Literal["score", "advantage"] = "score"
    """`score`: correct by the verifier (the released code); `advantage`: A > 0 (the paper). They
    differ where shaping pushes a correct response below its group's mean."""
    layer: int = -2
    """Whose hidden states: an index into Hugging Face's `hidden_states`. -2: the input of the last
    layer; -1: after the final norm; 0: the embeddings."""
    weights: str = "residual"
    """The weighting where `algorithm.weighting` is auto. `residual`: the method. Controls that
    punish incorrect responses as much, as the loss sees it: `constant`, one weight for all
    incorrect tokens of a group; `random`, the group's weights dealt to its incorrect tokens.
    `inverted`: 1 + floor - weight, most where the method punishes least. Or `path.py:name` of a
    `TokenWeighting` of your own."""
    refresh: Literal["rollout", "minibatch"] = "rollout"
    """`rollout`: reuse the weights of the scoring pass for all updates of the step; `minibatch`:
    compute them anew with the current policy before each update (the released code)."""
    mask_think: bool = False
    """Keep tokens between the think markers out of the subspace and the quantiles, and do not
    punish those of wrong responses (weight 0)."""
    think_markers: tuple[str, str] = ("<think>", "</think>")
    """Texts that open and close a span of thinking."""
    subspace_method: Literal["gram", "rows", "auto"] = "auto"
    """What is kept of a group's positives and exchanged between ranks. `gram`: Gram matrices;
    `rows`: the sampled hidden states, sent to the group's owner; `auto`: `rows`, unless a group can
    have more than 32 times as many sampled positive tokens as the hidden size."""
    window_tokens: Annotated[int | None, at_least(1)] = None
    """Positive tokens that a rank collects before bases are made. More: more groups solved
    together, for more memory. Default: those of the largest group, at least 1024."""
    diagnose_every: Annotated[int, at_least(0)] = 0
    """Steps between measurements of displaced likelihood, gradient interference and spectrum; 0:
    never. One more forward pass over the positive responses each time."""
    interference_tokens: Annotated[int, at_least(1)] = 64
    """Positive and negative tokens drawn per group for the interference of their gradients."""
    logit_factor: bool = False
    """Also measure the logit factor of the interference, which needs the drawn tokens' full
    distributions."""


@dataclass(frozen=True)
class CheckpointConfig:
    """Saving and resuming."""

    save_every: Annotated[int, at_least(0)] = 10
    """Steps between checkpoints, so that a run that is killed loses no more; 0: only at the end.
    The last step is always saved."""
    async_save: bool = True
    """Write in the background while training goes on; holds a copy of the model, its masters and
    moments in host memory until it is written."""
    keep_last: Annotated[int, at_least(1)] = 2
    """Newest checkpoints kept; older ones are removed after a new one is complete."""
    keep_every: Annotated[int, at_least(0)] = 0
    """Also keep checkpoints whose step is a multiple of it; 0: off."""
    best_metric: str | None = None
    """Also keep the checkpoint whose step has the best value of this metric, e.g.
    `eval/heldout/avg@4`; steps without it do not compete. None: off."""
    best_mode: Literal["max", "min"] = "max"
    """Whether the largest or the smallest value of `best_metric` is best."""
    resume: Literal["auto", "never", "changed"] = "auto"
    """`auto`: continue from the newest undamaged checkpoint of the output directory, if any;
    refused where algorithm, reward, data, model, seed or another setting that gives a run its
    meaning is not the checkpoint's. `changed`: accept that, and go on with its weights and
    optimizer. `never`: start anew; what an earlier run left is set aside (`checkpoints.1`, ...)."""
    verify_checksums: bool = True
    """Before resuming, read the whole checkpoint and compare it with its checksums."""
    keep_rollouts: bool = True
    """Keep finished rollouts on disk until a checkpoint contains what was learned from them, so
    that a resumed run does not generate them again."""
    export_hf: bool = True
    """Write the final policy as a Hugging Face model to `<output_dir>/hf`."""
    preemption_exit_code: Annotated[int | None, between(0, 255)] = None
    """Exit status of a run that a signal made save and end early; default: 143 after SIGTERM, 0
    after SIGUSR1 and at the end of `time_budget`."""


@dataclass(frozen=True)
class LoggingConfig:
    """What is written while training."""

    tensorboard: bool = True
    """Write TensorBoard events to `<output_dir>/tensorboard`."""
    wandb_project: str | None = None
    """Weights & Biases project (needs the `wandb` extra); None: off. Nothing that the service does
    ends or holds up a run: it is a warning, and where possible the run is kept on disk for
    `wandb sync`."""
    wandb_name: str | None = None
    """Name of the run there; default: that of `output_dir`'s folder."""
    wandb_entity: str | None = None
    """Team or user whose project it is; default: yours."""
    wandb_group: str | None = None
    """Group of runs that it belongs to, e.g. of an experiment."""
    wandb_tags: tuple[str, ...] = ()
    """Labels to find it by."""
    sample_responses: Annotated[int, at_least(0)] = 2
    """Responses of each step written with the metrics, to read."""
    format: Literal["text", "json"] = "text"
    """Lines of the log: text for people, or `json`, one object per line with time, level, rank,
    host, step, phase and message; there is no bar then."""
    prometheus_port: Annotated[int | None, between(1, 65535)] = None
    """Port on 127.0.0.1 of rank 0's host from which a Prometheus scraper gets the metrics of the
    last step (needs the `prometheus` extra); null: off."""
    progress_bar: bool = True
    """Draw a bar with steps, phase, reward and time left on a terminal; false, and in a log file:
    a line for each step, and one for a phase that takes longer than 30 s."""


@dataclass(frozen=True)
class RunSettings:
    """What every training stage has: where it writes, its length, model, layout and optimizer."""

    output_dir: str = "outputs/run"
    """Everything the run writes goes below this directory."""
    seed: Annotated[int, at_least(0)] = 0
    """Random seed; combined with step, group and sample index."""
    steps: Annotated[int, at_least(1)] = 100
    """Training steps; in reinforcement learning: roll out, grade, update."""
    time_budget: str | float | None = None
    """Time for the whole job, in seconds or as h:mm:ss or d-hh:mm:ss, counted from the start of
    Slurm's allocation, else of the process. The run saves and ends, to be continued, when one more
    step and its save might not fit. null: unlimited."""
    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)


@dataclass(frozen=True)
class Recipe(RunSettings):
    """All settings of a run of reinforcement learning."""

    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    vllm: VllmConfig = field(default_factory=VllmConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    correction: CorrectionConfig = field(default_factory=CorrectionConfig)
    resrl: ResrlConfig = field(default_factory=ResrlConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
