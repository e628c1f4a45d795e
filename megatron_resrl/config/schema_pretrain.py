"""The recipe of pretraining, with the sections of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from megatron_resrl.config.ranges import BELOW_ONE, above, at_least
from megatron_resrl.config.schema import LoggingConfig, ModelConfig, RunSettings
from megatron_resrl.config.schema_questions import FileEntry


@dataclass(frozen=True)
class PretrainModelConfig(ModelConfig):
    """The model's shape and tokenizer, and where its weights come from."""

    fresh_weights: bool = True
    """Draw the first weights at random as megatron-core does, keyed by the run's seed; `path` then
    needs config.json and the tokenizer only. False: start from the weights of `path`."""
    init_method_std: Annotated[float, above(0)] = 0.02
    """Standard deviation of fresh weights. In matrices that write to the residual stream it is
    divided by the root of twice the number of layers (megatron-core)."""


@dataclass(frozen=True)
class BatchConfig:
    """How many sequences a step takes, how they pass through the model, and what is added to their
    loss."""

    global_batch_size: Annotated[int, at_least(1)] = 256
    """Sequences per optimizer step, over all replicas."""
    micro_batch_size: Annotated[int, at_least(1)] = 1
    """Sequences per micro-batch of one data-parallel rank."""
    rampup_batch_size: tuple[int, int, int] | None = None
    """Start with fewer sequences per step (Megatron's meaning): [first batch size, increment,
    sequences over which it grows to `global_batch_size` in equal parts]; null: no ramp-up."""
    z_loss_coefficient: Annotated[float, at_least(0)] = 0.0
    """Adds this times the mean square of each token's log-normaliser to the loss (PaLM: 1e-4); 0:
    off."""


@dataclass(frozen=True)
class PretrainDataConfig:
    """Tokens to train on: files that tools/preprocess_data.py or Megatron-LM made."""

    train_files: tuple[FileEntry, ...] = ()
    """Prefixes of indexed datasets (PREFIX.bin and PREFIX.idx); one or a list. An entry
    {path: PREFIX, weight: 0.7} has a share of the sequences; weights sum to 1. Without weights,
    each file has the share of its tokens."""
    validation_files: tuple[FileEntry, ...] = ()
    """Prefixes of indexed datasets to measure the loss on; each is a set with metrics of its own,
    called by the file's name or by `name` of an entry {path: PREFIX, name: NAME}."""
    validation_share: Annotated[float, BELOW_ONE] = 0.0
    """Share of the documents, the last of each training file, that is kept for validation; each
    file then has a validation set."""
    sequence_length: Annotated[int, at_least(2)] = 2048
    """Tokens that a sequence feeds to the model; as many are predicted."""
    document_mask: bool = False
    """Attention stays inside a document, and positions begin anew with each document. The first
    token of a document is then no target."""
    cache_dir: str | None = None
    """Folder for the order of documents and sequences, which is made once and read by all ranks;
    all hosts share it. Default: `cache` beside each file."""


@dataclass(frozen=True)
class PretrainEvaluationConfig:
    """Loss and perplexity on validation data."""

    every: Annotated[int, at_least(0)] = 0
    """Steps between evaluations; 0: only before the first and after the last step."""
    sequences: Annotated[int, at_least(1)] = 256
    """Sequences of each validation set, always the same ones."""


@dataclass(frozen=True)
class PretrainLoggingConfig(LoggingConfig):
    """What is written while training."""

    peak_tflops: Annotated[float | None, above(0)] = None
    """Peak of one device in TFLOP/s, of which the metric `mfu` is a share; default: that of A100,
    H100, H200, B200 and L40S, and no `mfu` on other devices."""


@dataclass(frozen=True)
class PretrainRecipe(RunSettings):
    """All settings of a run of pretraining."""

    model: PretrainModelConfig = field(default_factory=PretrainModelConfig)
    data: PretrainDataConfig = field(default_factory=PretrainDataConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    evaluation: PretrainEvaluationConfig = field(default_factory=PretrainEvaluationConfig)
    logging: PretrainLoggingConfig = field(default_factory=PretrainLoggingConfig)
