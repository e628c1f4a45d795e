"""A step of pretraining against transformers: loss, gradients, and what decays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy
import pytest
import tiny_families as tiny
import torch
from tiny_corpus import LENGTH, VOCABULARY, documents
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from megatron_resrl.config.schema import (
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PrecisionConfig,
)
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.platform.distributed import process_groups
from megatron_resrl.policy.policy import Policy
from megatron_resrl.training.pretrain import batch_of
from megatron_resrl.training.supervised import supervised_step
from megatron_resrl.weights.hugging_face import export_weights

Z_LOSS = 0.05
LEARNING_RATE, WEIGHT_DECAY, EPS = 1e-2, 0.1, 1e-3
Sequences = Sequence[Sequence[numpy.ndarray]]


@pytest.fixture(scope="module", autouse=True)
def _one_rank() -> Iterator[None]:
    with process_groups(ParallelConfig(), 0):
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With norms and biases that are random, so that a decay of theirs would show."""
    directory = tmp_path_factory.mktemp("model")
    torch.manual_seed(1)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    random = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tiny.randomise(random)
    random.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def sequences() -> Sequences:
    """Three sequences of one, three and two documents' parts, one part of a single token."""
    longest = max(documents(), key=len)
    text = numpy.array(longest * 3)
    cuts = ((LENGTH + 1,), (4, 1, LENGTH - 4), (9, LENGTH - 8))
    return [numpy.split(text[: LENGTH + 1], numpy.cumsum(lengths)[:-1]) for lengths in cuts]


def _step(
    model: Path, sequences: Sequences, *, document_mask: bool
) -> tuple[dict[str, float], list[dict[str, torch.Tensor]]]:
    """Metrics; weights before, gradients, and weights after, by Hugging Face names."""
    optimizer = OptimizerConfig(
        lr=LEARNING_RATE, lr_warmup_steps=0, weight_decay=WEIGHT_DECAY, adam_eps=EPS, clip_grad=0.0
    )
    policy = Policy.build(
        ModelConfig(str(model)),
        ParallelConfig(),
        PrecisionConfig("fp32"),
        optimizer=optimizer,
        sequence_packing=document_mask,
    )
    before = _exported(policy)
    batch = batch_of(sequences, 2, document_mask=document_mask)
    outcome = supervised_step(policy, batch, Z_LOSS, PhaseTimers())
    after = _exported(policy)
    for parameter in policy.modules[0].parameters():
        parameter.data.copy_(parameter.main_grad)
    return outcome.metrics, [before, _exported(policy), after]


def _exported(policy: Policy) -> dict[str, torch.Tensor]:
    weights = export_weights(policy.modules, policy.hf_config)
    return {name: tensor.clone() for name, tensor in weights}


def _reference_loss(
    model: PreTrainedModel, sequences: Sequences, *, document_mask: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean cross-entropy over all targets, and the mean squared log-normaliser."""
    cross_entropy, squared, targets = 0.0, 0.0, 0
    for pieces in sequences:
        tokens = torch.from_numpy(numpy.concatenate(pieces))
        fed, following = tokens[None, :-1], tokens[1:]
        document = torch.repeat_interleave(
            torch.arange(len(pieces)), torch.tensor([len(piece) for piece in pieces])
        )
        allowed = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
        positions, has_loss = torch.arange(LENGTH), torch.ones(LENGTH, dtype=torch.bool)
        if document_mask:
            allowed &= document[:-1, None] == document[None, :-1]
            positions = torch.cat([torch.arange(len(piece)) for piece in pieces])[:-1]
            has_loss = document[1:] == document[:-1]
        mask = torch.zeros(1, 1, LENGTH, LENGTH).masked_fill(~allowed, torch.finfo().min)
        logits = model(fed, attention_mask=mask, position_ids=positions[None]).logits[0, has_loss]
        normaliser = logits.logsumexp(-1)
        chosen = logits.gather(1, following[has_loss, None])[:, 0]
        cross_entropy = cross_entropy + (normaliser - chosen).sum()
        squared = squared + normaliser.square().sum()
        targets += int(has_loss.sum())
    return cross_entropy / targets, squared / targets


@pytest.mark.parametrize("document_mask", [False, True])
def test_pretrain_step_is_that_of_transformers(model, sequences, document_mask):
    metrics, (before, gradients, after) = _step(model, sequences, document_mask=document_mask)
    reference = tiny.read_model(model)
    loss, squared = _reference_loss(reference, sequences, document_mask=document_mask)
    (loss + Z_LOSS * squared).backward()
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["z_loss"] == pytest.approx(Z_LOSS * squared.item(), rel=1e-5)
    assert metrics["targets"] == (3 * LENGTH - 3 if document_mask else 3 * LENGTH)
    named = dict(reference.named_parameters())
    assert any(name.endswith("bias") for name in named)
    assert named.keys() == gradients.keys()
    for name, parameter in named.items():
        largest = float(parameter.grad.abs().max())
        torch.testing.assert_close(
            gradients[name], parameter.grad, rtol=1e-5, atol=1e-5 * largest, msg=name
        )
    for name, parameter in named.items():
        # Adam's first step; norms and biases do not decay.
        decay = WEIGHT_DECAY if parameter.dim() > 1 else 0.0
        step = parameter.grad / (parameter.grad.abs() + EPS) + decay * before[name]
        expected = before[name] - LEARNING_RATE * step
        torch.testing.assert_close(after[name], expected, rtol=0, atol=1e-6, msg=name)


def test_document_mask_keeps_documents_apart(model, sequences):
    """A batch with masks is the batch of its documents' parts, each alone."""
    alone = [[piece] for pieces in sequences for piece in pieces if len(piece) > 1]
    together, (_, gradients, _) = _step(model, sequences, document_mask=True)
    apart, (_, expected, _) = _step(model, alone, document_mask=False)
    assert together["loss"] == pytest.approx(apart["loss"], rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
