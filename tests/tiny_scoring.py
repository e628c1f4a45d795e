"""Log-probabilities of a few sequences and one step on them, beside transformers in fp32."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from megatron_resrl.policy.batches import MicroBatch, TokenBatch, TokenSequence
from megatron_resrl.policy.policy import Policy
from megatron_resrl.policy.results import UpdateResult
from megatron_resrl.weights.hugging_face import export_weights

VOCABULARY = 131


def write_llama(folder: Path, hidden_size: int = 64, layers: int = 2) -> Path:
    """Saves a random Llama of four heads, whose matrices FP8 products can take."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=128,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def draw(seed: int, *lengths: tuple[int, int]) -> list[TokenSequence]:
    """One sequence per (prompt, response) length, of tokens that no model stops at."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 120, (count,), generator=generator).tolist())

    return [TokenSequence(tokens(prompt), tokens(response)) for prompt, response in lengths]


SEQUENCES = draw(1, (5, 27), (9, 14), (3, 22), (16, 16))


def reference(model: Path, policy: Policy, sequences: list[TokenSequence]) -> torch.Tensor:
    """log-probabilities of all response tokens with the policy's present weights, in fp32."""
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    network.load_state_dict(dict(export_weights(policy.modules, policy.hf_config)), strict=False)
    found = []
    for one in sequences:
        tokens = torch.tensor([*one.prompt, *one.response])[None]
        with torch.no_grad():
            log_probs = network(tokens).logits[0].log_softmax(-1)
        first = len(one.prompt)
        found.append(log_probs[first - 1 : -1].gather(1, tokens[0, first:, None])[:, 0])
    return torch.cat(found)


def score(policy: Policy, sequences: list[TokenSequence]) -> torch.Tensor:
    """The policy's own, in the order of `reference`."""
    batches = policy.micro_batches(TokenBatch.from_sequences(sequences), 2)
    return in_order([each.log_probs for each in policy.score(batches)], batches)


def in_order(log_probs: list[torch.Tensor], batches: list[MicroBatch]) -> torch.Tensor:
    """Those of micro-batches, by sequence and position."""
    places = [
        place
        for batch in batches
        for place in zip(
            batch.sequence_index.tolist(), batch.response_position.tolist(), strict=True
        )
    ]
    order = sorted(range(len(places)), key=places.__getitem__)
    return torch.cat(log_probs).cpu()[torch.tensor(order)]


def update(policy: Policy, sequences: list[TokenSequence]) -> tuple[UpdateResult, torch.Tensor]:
    """One step, and the log-probabilities that its loss saw, in the order of `reference`."""
    batches = policy.micro_batches(TokenBatch.from_sequences(sequences), 2)
    seen: list[torch.Tensor] = []

    def loss(log_probs: torch.Tensor, entropy: torch.Tensor, batch: object) -> tuple:
        seen.append(log_probs.detach().clone())
        return -log_probs.mean(), None

    result = policy.update(batches, loss)
    return result, in_order(seen, batches)
