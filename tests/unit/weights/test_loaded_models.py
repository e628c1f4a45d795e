"""Models as published files have them compute what transformers computes, and are saved alike."""

from __future__ import annotations

import enum
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_families as tiny
import torch
from common_object import store_common_as_object
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from megatron_resrl.checkpoint.checkpoint import TrainerState, save_checkpoint
from megatron_resrl.config.schema import ModelConfig, ParallelConfig, PrecisionConfig, Recipe
from megatron_resrl.conversion.from_hugging_face import convert_hf_to_megatron
from megatron_resrl.errors import InputError
from megatron_resrl.platform.cpu import adapt_megatron_core
from megatron_resrl.platform.distributed import initialize, shutdown
from megatron_resrl.policy.batches import TokenBatch, TokenSequence

WEIGHTS = "model.safetensors"
HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"
UP = "model.layers.1.mlp.up_proj.weight"
TOLERANCE = 3e-5
"""fp32: log-probs reach -30, where one rounding is 2e-6; some CPUs' products leave ten of them."""


class ActivationFormat(enum.Enum):
    """A class that no reader of a checkpoint knows."""

    FLAT = 1


@pytest.fixture(scope="module", autouse=True)
def one_rank(converted: Path) -> Iterator[None]:
    initialize(ParallelConfig(), 0)
    yield
    shutdown()


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny.write_families(tmp_path_factory.mktemp("families"), ["llama", "llama_tied"])


@pytest.fixture(scope="module")
def mixed(families: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of which norms and values are fp32, and the other matrices bfloat16."""
    path = tmp_path_factory.mktemp("mixed") / "model"
    shutil.copytree(families["llama"], path)
    content = load_file(path / WEIGHTS)
    for name in content:
        if "norm" not in name and "v_proj" not in name:
            content[name] = content[name].bfloat16()
    save_file(content, path / WEIGHTS, metadata={"format": "pt"})
    return path


@pytest.fixture(scope="module")
def converted(mixed: Path) -> Path:
    """The same in Megatron's format; no process group may exist while it is made."""
    adapt_megatron_core()
    convert_hf_to_megatron(str(mixed), str(mixed.with_name("megatron")), 2, 2)
    return mixed.with_name("megatron")


@pytest.fixture
def untied(families: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(families["llama"], tmp_path / "model"))


@pytest.fixture
def tied(families: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(families["llama_tied"], tmp_path / "model"))


def policy_of(path: Path, *, tokenizer: Path | None = None, trainable: bool = False):
    from megatron_resrl.rollout.worker import build_policy

    model = ModelConfig(str(path), None if tokenizer is None else str(tokenizer))
    recipe = Recipe(model=model, precision=PrecisionConfig("fp32"))
    return build_policy(recipe, trainable=trainable)


def ours(policy) -> list[torch.Tensor]:
    sequences = [TokenSequence(*pair) for pair in tiny.ragged_token_ids()]
    batches = policy.micro_batches(TokenBatch.from_sequences(sequences), 1)
    return [scores.log_probs for scores in policy.score(batches, temperature=1.0)]


def theirs(path: Path) -> list[torch.Tensor]:
    """Log-probabilities of the responses by transformers."""
    model = tiny.read_model(path)
    found = []
    for prompt, response in tiny.ragged_token_ids():
        with torch.no_grad():
            logits = model(torch.tensor([prompt + response])[:, :-1]).logits[0, len(prompt) - 1 :]
        found.append(logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0])
    return found


def assert_equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> None:
    assert max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True)) < TOLERANCE


def add(path: Path, **tensors: torch.Tensor) -> None:
    file = path / WEIGHTS
    save_file(load_file(file) | {name.replace("__", "."): t for name, t in tensors.items()}, file)


def save(policy, directory: Path) -> Path:
    from megatron_resrl.weights.hugging_face import save_hf_model

    save_hf_model(policy.modules, policy.hf_config, directory, tokenizer=policy.tokenizer_path)
    return directory


def test_load_weights_ignores_a_stray_file_beside_the_model(untied: Path) -> None:
    stray = {name: torch.zeros_like(t) for name, t in load_file(untied / WEIGHTS).items()}
    for name in ("a.safetensors", "step_100.safetensors"):
        save_file(stray, untied / name, metadata={"format": "pt"})
    assert_equal(ours(policy_of(untied)), theirs(untied))


def test_load_weights_takes_numbered_files_for_one_model(untied: Path) -> None:
    expected = theirs(untied)
    content = load_file(untied / WEIGHTS)
    (untied / WEIGHTS).unlink()
    names = sorted(content)
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = untied / f"model-{number:05d}-of-00002.safetensors"
        save_file({name: content[name] for name in part}, file)
    assert_equal(ours(policy_of(untied)), expected)
    (untied / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match="has 1 of the 2 files of its model: model-00001"):
        policy_of(untied)


def test_tied_model_with_another_output_matrix_is_untied(
    tied: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    head = torch.randn(tiny.VOCABULARY, 48)
    add(tied, lm_head__weight=head)
    with caplog.at_level(logging.WARNING):
        policy = policy_of(tied, trainable=True)
    assert "trained and saved untied" in caplog.text
    expected = theirs(tied)
    assert_equal(ours(policy), expected)
    exported = save(policy, tmp_path / "exported")
    assert torch.equal(load_file(exported / WEIGHTS)[HEAD], head)
    assert json.loads((exported / "config.json").read_text())["tie_word_embeddings"] is False
    assert_equal(theirs(exported), expected)
    # A checkpoint says it too, so that it can be converted and loaded.
    step = save_checkpoint(tmp_path / "run", policy, TrainerState(1, {}))
    assert_equal(ours(policy_of(step)), expected)


def test_output_matrix_that_is_the_embedding_stays_tied(tied: Path, tmp_path: Path) -> None:
    add(tied, lm_head__weight=load_file(tied / WEIGHTS)[EMBEDDING].clone())
    policy = policy_of(tied)
    assert policy.hf_config.tie_word_embeddings
    exported = save(policy, tmp_path / "exported")
    assert HEAD not in load_file(exported / WEIGHTS)
    assert (exported / "config.json").read_bytes() == (tied / "config.json").read_bytes()


def test_tied_model_with_one_megatron_output_matrix_is_refused(
    untied: Path, tmp_path: Path
) -> None:
    step = save_checkpoint(tmp_path / "run", policy_of(untied, trainable=True), TrainerState(1, {}))
    config = json.loads((step / "hf" / "config.json").read_text())
    config["tie_word_embeddings"] = True
    (step / "hf" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"output matrix of its own.*tie_word_embeddings is true"):
        policy_of(step)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named_with_their_file(untied: Path, value: float) -> None:
    broken = load_file(untied / WEIGHTS)[UP].clone()
    broken[3, 5] = value
    add(untied, **{UP.replace(".", "__"): broken})
    match = rf"NaN or infinite in float32: {UP} in model\.safetensors; use a whole copy"
    with pytest.raises(InputError, match=match):
        policy_of(untied)


def test_load_takes_differing_types_from_either_format(mixed: Path, converted: Path) -> None:
    expected = theirs(mixed)
    assert_equal(ours(policy_of(mixed)), expected)
    assert_equal(ours(policy_of(converted)), expected)


def test_load_reads_no_values_of_another_program(
    mixed: Path, converted: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(converted, tmp_path / "model"))
    # Megatron-LM keeps its arguments there, which hold objects of its own classes.
    store_common_as_object(model / "release", args=ActivationFormat.FLAT)
    assert_equal(ours(policy_of(model)), theirs(mixed))


def test_load_weights_logs_what_is_left_out(untied: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = theirs(untied)
    add(untied, model__mtp__norm__weight=torch.ones(3))
    with caplog.at_level(logging.WARNING):
        assert_equal(ours(policy_of(untied)), expected)
    assert "they are left out: model.mtp.norm.weight" in caplog.text


def test_attention_kernel_in_config_json_is_not_asked_for(untied: Path) -> None:
    expected = theirs(untied)
    config = json.loads((untied / "config.json").read_text())
    for name in ("flash_attention_2", "flash_attention_3", "flex_attention"):
        for key in ("attn_implementation", "_attn_implementation"):
            (untied / "config.json").write_text(json.dumps(config | {key: name}))
            assert_equal(ours(policy_of(untied)), expected)


OLDER_CONFIG = b"""{
    "architectures": ["LlamaForCausalLM"], "model_type": "llama",
    "vocab_size": 131, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6, "eos_token_id": [1, 2], "pad_token_id": -1,
    "rope_theta": 10000.0,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                     "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
    "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.46.0"
}
"""
"""As transformers 4 spells it. A reader of that line does not know `rope_parameters`."""


def test_save_hf_model_keeps_the_files_of_the_model(untied: Path, tmp_path: Path) -> None:
    (untied / "config.json").write_bytes(OLDER_CONFIG)
    (untied / "generation_config.json").write_bytes(b'{"temperature":0.60,\\n "eos_token_id": [1]}')
    (untied / "chat_template.jinja").write_text("{{ messages }}")
    settings = json.loads((untied / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    (untied / "tokenizer_config.json").write_text(json.dumps(settings))
    policy = policy_of(untied, trainable=True)
    exported = save(policy, tmp_path / "exported")
    step = save_checkpoint(tmp_path / "run", policy, TrainerState(1, {}))
    names = {path.name for path in untied.iterdir()} - {WEIGHTS, "config.json"}
    assert names >= {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    for name in names:
        for folder in (exported, step / "hf"):
            assert (folder / name).read_bytes() == (untied / name).read_bytes(), name
    said = OLDER_CONFIG.replace(b'"bfloat16"', b'"float32"')
    assert (exported / "config.json").read_bytes() == said
    assert (step / "hf" / "config.json").read_bytes() == OLDER_CONFIG
    assert_equal(theirs(exported), ours(policy))


def test_save_hf_model_has_the_tokenizer_of_training(untied: Path, tmp_path: Path) -> None:
    other = tmp_path / "tokenizer"
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"pad_token": "w7"})
    tokenizer.save_pretrained(other)
    policy = policy_of(untied, tokenizer=other, trainable=True)
    exported = save(policy, tmp_path / "exported")
    step = save_checkpoint(tmp_path / "run", policy, TrainerState(1, {}))
    for folder in (exported, step / "hf"):
        assert AutoTokenizer.from_pretrained(folder).pad_token == "w7"
        assert (folder / "config.json").read_bytes() == (untied / "config.json").read_bytes()


def test_checkpoint_and_its_run_can_be_named_as_the_model(untied: Path, tmp_path: Path) -> None:
    policy = policy_of(untied, trainable=True)
    expected = ours(policy)
    step = save_checkpoint(tmp_path / "run", policy, TrainerState(4, {}))
    for path in (step, step.parent, tmp_path / "run"):
        assert_equal(ours(policy_of(path)), expected)
