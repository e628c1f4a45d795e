"""Files of a model are carried over as they are; only what the weights change is said anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_resrl.errors import InputError
from megatron_resrl.weights.model_files import copy_model_files, write_weights_to_config

CONFIG = b"""{"architectures":["LlamaForCausalLM"],
   "rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0},
 "rms_norm_eps": 1e-05,\t"torch_dtype" : "bfloat16",
 "tie_word_embeddings": true, "note": "\\u00e9 \xc3\xa9" }"""


def written(directory: Path, files: dict[str, bytes]) -> Path:
    directory.mkdir()
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_copy_model_files_copies_all_but_weights_bytewise(tmp_path: Path) -> None:
    small = {
        "config.json": CONFIG,
        "generation_config.json": b"{ }",
        "tokenizer.json": b"{\r\n}",
        "tokenizer.model": bytes(range(256)),
        "merges.txt": b"a b",
        "chat_template.jinja": b"x",
    }
    large = (
        "model.safetensors",
        "model.safetensors.index.json",
        "model.safetensors.index.fp32.json",
        "pytorch_model.bin",
        "adapter_config.json",
        "latest_checkpointed_iteration.txt",
    )
    source = written(tmp_path / "source", small | dict.fromkeys(large, b"{}"))
    templates = written(source / "additional_chat_templates", {"tool.jinja": b"y"})
    target = tmp_path / "target"
    names = copy_model_files(source, target)
    assert contents(target) == small
    assert contents(target / templates.name) == {"tool.jinja": b"y"}
    assert names == sorted([*small, templates.name])


def test_copy_model_files_replaces_the_tokenizer(tmp_path: Path) -> None:
    of_network = {"config.json": CONFIG, "generation_config.json": b"{}"}
    own = dict.fromkeys(("vocab.json", "merges.txt", "tokenizer_config.json"), b"{}")
    other = {"tokenizer.json": b"{ }", "tokenizer_config.json": b'{"a": 1}'}
    source = written(tmp_path / "source", of_network | own)
    tokenizer = written(tmp_path / "other", other | {"config.json": b"{}"})
    copy_model_files(source, tmp_path / "target", tokenizer=tokenizer)
    assert contents(tmp_path / "target") == of_network | other


def told(directory: Path, config: bytes, **changes: object) -> bytes:
    (directory / "config.json").write_bytes(config)
    write_weights_to_config(directory, **changes)
    return (directory / "config.json").read_bytes()


def test_config_value_that_is_right_stays_as_written(tmp_path: Path) -> None:
    assert told(tmp_path, CONFIG, dtype="bfloat16", tied=True) == CONFIG
    prefixed = CONFIG.replace(b'"bfloat16"', b'"torch.bfloat16"')
    assert told(tmp_path, prefixed, dtype="bfloat16") == prefixed
    untied = b'{"torch_dtype": "float32"}'
    assert told(tmp_path, untied, dtype="float32", tied=False) == untied


def test_config_changes_only_the_value_that_differs(tmp_path: Path) -> None:
    changed = told(tmp_path, CONFIG, dtype="float32", tied=False)
    expected = CONFIG.replace(b'"torch_dtype" : "bfloat16"', b'"torch_dtype": "float32"')
    assert changed == expected.replace(b"true", b"false")
    newer = CONFIG.replace(b"torch_dtype", b"dtype")
    changed = told(tmp_path, newer, dtype="float16")
    assert changed == newer.replace(b'"dtype" : "bfloat16"', b'"dtype": "float16"')


@pytest.mark.parametrize(
    "config",
    [
        '{"a": {"b": 1}}',
        "{}",
        '{"inner": {"torch_dtype": "float16", "tie_word_embeddings": false}, "a": 1}',
        '{"inner": {"torch_dtype": "float16"}, "torch_dtype": null, "tie_word_embeddings": false}',
        '{"torch_dtype": "float16", "dtype": "float16"}',
    ],
)
def test_config_gets_missing_values_at_the_top(tmp_path: Path, config: str) -> None:
    changed = json.loads(told(tmp_path, config.encode(), dtype="float32", tied=True))
    wanted = json.loads(config) | {"torch_dtype": "float32", "tie_word_embeddings": True}
    assert changed == wanted | ({"dtype": "float32"} if '"dtype"' in config else {})


def test_config_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a JSON object"):
        told(tmp_path, b"[]", dtype="float32")
