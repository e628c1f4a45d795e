"""A model that went to Megatron's format and back is the same to the last bit."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import tiny_conversion
import tiny_families as tiny
import torch
from safetensors.torch import save_file
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from torch.distributed.checkpoint import FileSystemReader
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from megatron_resrl.checks.recipe import check_recipe
from megatron_resrl.config.schema import ModelConfig, Recipe
from megatron_resrl.conversion import model_directory
from megatron_resrl.conversion.from_hugging_face import convert_hf_to_megatron
from megatron_resrl.conversion.to_hugging_face import convert_megatron_to_hf

SIZES = {torch.float32: (2, 2), torch.bfloat16: (4, 1), torch.float16: (1, 1)}


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny.write_families(tmp_path_factory.mktemp("families"))


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models are cut into several files, which the command would refuse."""
    monkeypatch.setattr(model_directory, "SMALLEST_SHARD", 1)


@pytest.mark.parametrize("dtype", SIZES, ids=str)
@pytest.mark.parametrize("family", tiny.family_configs())
def test_round_trip_returns_every_tensor_bit_by_bit(
    families: dict[str, Path], tmp_path: Path, family: str, dtype: torch.dtype
) -> None:
    source = tiny_conversion.save_typed(families[family], tmp_path / "typed", dtype)
    megatron, back = tmp_path / "megatron", tmp_path / "back"
    report = convert_hf_to_megatron(str(source), str(megatron), *SIZES[dtype])
    convert_megatron_to_hf(str(megatron), str(back), max_shard_size="50KB")
    want = tiny_conversion.tensors(source)
    assert tiny_conversion.differing(tiny_conversion.tensors(back), want) == []
    assert all(tensor.dtype == dtype for tensor in want.values())
    assert len(list(source.glob("*.safetensors"))) > 1
    assert len(list(back.glob("*.safetensors"))) > 1
    assert report.tensors == len(want)
    assert report.bytes == sum(tensor.nbytes for tensor in want.values())


@pytest.mark.parametrize("family", ["llama", "qwen3_moe_mixed"])
def test_round_trip_keeps_tensors_of_differing_types(
    families: dict[str, Path], tmp_path: Path, family: str
) -> None:
    source = tmp_path / "mixed"
    shutil.copytree(families[family], source)
    want = tiny_conversion.tensors(source)
    for name in want:
        # Norms and routers in fp32 as published; and one of three that become one parameter, and
        # one layer's of all that are stored together.
        if "norm" not in name and "mlp.gate." not in name and "v_proj" not in name:
            half = torch.float16 if ".2.self_attn.o_proj" in name else torch.bfloat16
            want[name] = want[name].to(half)
    save_file(want, source / "model.safetensors", metadata={"format": "pt"})
    megatron, back = tmp_path / "megatron", tmp_path / "back"
    report = convert_hf_to_megatron(str(source), str(megatron), 2, 2)
    returned = convert_megatron_to_hf(str(megatron), str(back))
    assert tiny_conversion.differing(tiny_conversion.tensors(back), want) == []
    assert report.dtypes.keys() == {"bfloat16", "float32", "float16"}
    assert report.bytes == returned.bytes == sum(tensor.nbytes for tensor in want.values())
    for folder in (megatron, back):
        assert (folder / "config.json").read_bytes() == (source / "config.json").read_bytes()


@pytest.mark.parametrize(("layers", "stages"), [(5, 2), (7, 3)])
def test_round_trip_keeps_layers_in_uneven_stages(
    families: dict[str, Path], tmp_path: Path, layers: int, stages: int
) -> None:
    config = AutoConfig.from_pretrained(families["qwen2"])
    config.num_hidden_layers, config.layer_types = layers, ["full_attention"] * layers
    source, megatron, back = tmp_path / "deep", tmp_path / "megatron", tmp_path / "back"
    AutoModelForCausalLM.from_config(config).save_pretrained(source)
    convert_hf_to_megatron(str(source), str(megatron), 1, stages)
    convert_megatron_to_hf(str(megatron), str(back))
    want = tiny_conversion.tensors(source)
    assert tiny_conversion.differing(tiny_conversion.tensors(back), want) == []
    sizes = [(megatron / "release" / f"__{rank}_0.distcp").stat().st_size for rank in range(stages)]
    assert min(sizes) > 0


def test_round_trip_unties_a_model_with_another_output_matrix(
    families: dict[str, Path], tmp_path: Path
) -> None:
    source = Path(shutil.copytree(families["llama_tied"], tmp_path / "source"))
    want = tiny_conversion.tensors(source) | {"lm_head.weight": torch.randn(131, 48)}
    save_file(want, source / "model.safetensors", metadata={"format": "pt"})
    megatron, back = tmp_path / "megatron", tmp_path / "back"
    assert convert_hf_to_megatron(str(source), str(megatron)).unexpected == ()
    convert_megatron_to_hf(str(megatron), str(back))
    assert tiny_conversion.differing(tiny_conversion.tensors(back), want) == []
    for folder in (megatron, back):
        assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False


def test_conversion_ignores_a_stray_file_beside_the_model(
    families: dict[str, Path], tmp_path: Path
) -> None:
    source = Path(shutil.copytree(families["qwen3"], tmp_path / "source"))
    want = tiny_conversion.tensors(source)
    stray = {name: torch.zeros_like(tensor) for name, tensor in want.items()}
    save_file(stray, source / "step_100.safetensors", metadata={"format": "pt"})
    convert_hf_to_megatron(str(source), str(tmp_path / "megatron"))
    convert_megatron_to_hf(str(tmp_path / "megatron"), str(tmp_path / "back"))
    assert tiny_conversion.differing(tiny_conversion.tensors(tmp_path / "back"), want) == []


def test_round_trip_keeps_the_logits(families: dict[str, Path], tmp_path: Path) -> None:
    tokens = torch.tensor([tiny.ragged_token_ids()[3][1]])
    for family, source in families.items():
        megatron, back = tmp_path / family / "megatron", tmp_path / family / "back"
        convert_hf_to_megatron(str(source), str(megatron), 2, 1)
        convert_megatron_to_hf(str(megatron), str(back))
        with torch.no_grad():
            before, after = (tiny.read_model(p)(tokens).logits for p in (source, back))
        assert torch.equal(before, after)


def test_round_trip_keeps_the_other_files_of_the_model(
    families: dict[str, Path], tmp_path: Path
) -> None:
    source = tiny_conversion.save_typed(families["qwen3"], tmp_path / "typed", torch.bfloat16)
    extra = {
        "tokenizer.model": bytes(range(256)),
        "chat_template.jinja": "{{ messages }} é\n".encode(),
        "generation_config.json": b'{"eos_token_id": [1, 2]}',
    }
    for name, content in extra.items():
        (source / name).write_bytes(content)
    megatron, back = tmp_path / "megatron", tmp_path / "back"
    convert_hf_to_megatron(str(source), str(megatron))
    convert_megatron_to_hf(str(megatron), str(back))
    names = [*extra, "config.json", "tokenizer.json", "tokenizer_config.json"]
    for folder in (megatron, back):
        for name in names:
            assert (folder / name).read_bytes() == (source / name).read_bytes(), name
    assert not (back / "latest_checkpointed_iteration.txt").exists()
    words = ["w3", "w77", "w130", "unknown"]
    ids = [AutoTokenizer.from_pretrained(folder)(words).input_ids for folder in (source, back)]
    assert ids[0] == ids[1] == [[3], [77], [130], [0]]


def test_dtype_is_written_to_tensors_and_config(families: dict[str, Path], tmp_path: Path) -> None:
    source = families["llama_tied"]
    megatron, back = tmp_path / "megatron", tmp_path / "back"
    convert_hf_to_megatron(str(source), str(megatron), dtype="bfloat16")
    report = convert_megatron_to_hf(str(megatron), str(back))
    want = {name: t.to(torch.bfloat16) for name, t in tiny_conversion.tensors(source).items()}
    assert tiny_conversion.differing(tiny_conversion.tensors(back), want) == []
    for folder in (megatron, back):
        assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert report.dtypes == {"bfloat16": len(want)}
    wide = tmp_path / "wide"
    convert_megatron_to_hf(str(megatron), str(wide), dtype="float32")
    assert json.loads((wide / "config.json").read_text())["dtype"] == "float32"


def test_conversion_gives_each_rank_its_share(families: dict[str, Path], tmp_path: Path) -> None:
    megatron = tmp_path / "megatron"
    convert_hf_to_megatron(str(families["qwen3"]), str(megatron), 2, 2)
    assert (megatron / "latest_checkpointed_iteration.txt").read_text() == "release"
    metadata = FileSystemReader(megatron / "release").read_metadata()
    stored = {
        (index.fqn, *index.offset): place
        for index, place in metadata.storage_data.items()
        if index.offset is not None
    }
    file = {place: info.relative_path for place, info in stored.items()}
    first_layers = {f"__{rank}_0.distcp" for rank in (0, 1)}
    gates = "decoder.layers.mlp.linear_fc1.weight"
    # 80 gates, then 80 ups; each of two ranks has half of both, on its stage's layers.
    assert [file[gates, 0, row, 0] for row in (0, 40, 80, 120)] == [
        f"__{rank}_0.distcp" for rank in (0, 1, 0, 1)
    ]
    assert [file[gates, 2, row, 0] for row in (0, 40, 80, 120)] == [
        f"__{rank}_0.distcp" for rank in (2, 3, 2, 3)
    ]
    assert {file["embedding.word_embeddings.weight", row, 0] for row in (0, 66)} == first_layers
    assert file["output_layer.weight", 66, 0] == "__3_0.distcp"
    assert file["decoder.final_layernorm.weight", 0] == "__2_0.distcp"


def test_conversion_pads_the_vocabulary_with_zeros_and_says_so(
    families: dict[str, Path], tmp_path: Path
) -> None:
    megatron, back = tmp_path / "megatron", tmp_path / "back"
    report = convert_hf_to_megatron(
        str(families["qwen3"]), str(megatron), 2, make_vocab_size_divisible_by=128
    )
    assert report.reshaped["vocabulary of 131 padded to 256"] == (
        "embedding.word_embeddings.weight",
        "output_layer.weight",
    )
    convert_megatron_to_hf(str(megatron), str(back))
    original = tiny_conversion.tensors(families["qwen3"])
    assert tiny_conversion.differing(tiny_conversion.tensors(back), original) == []


def test_conversion_report_lists_what_is_no_part_of_the_model(
    families: dict[str, Path], tmp_path: Path
) -> None:
    source = tiny_conversion.save_typed(families["llama_tied"], tmp_path / "typed", torch.float32)
    extra = "model.layers.0.self_attn.rotary_emb.inv_freq"
    index = json.loads((source / "model.safetensors.index.json").read_text())
    index["weight_map"][extra] = "more.safetensors"
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({extra: torch.ones(6)}, source / "more.safetensors")
    report = convert_hf_to_megatron(str(source), str(tmp_path / "megatron"))
    assert report.unexpected == (extra,)
    assert report.missing == ()
    assert f"unexpected   1: {extra}" in str(report)
    assert "4 query, key and value merged" in str(report)
    assert report.peak_memory > report.bytes


def test_model_path_accepts_a_whole_converted_directory(
    families: dict[str, Path], tmp_path: Path
) -> None:
    megatron = tmp_path / "megatron"
    convert_hf_to_megatron(str(families["qwen3"]), str(megatron))

    def problems() -> list[str]:
        found = check_recipe(Recipe(model=ModelConfig(str(megatron))), world_size=1)
        of_model = [each.problem for each in found if each.setting == "model.path"]
        return [problem for problem in of_model if "chat template" not in problem]

    assert problems() == []
    (megatron / "release" / ".metadata").unlink()
    (problem,) = problems()
    assert problem.endswith(
        "latest_checkpointed_iteration.txt says 'release', but "
        f"{megatron / 'release'} holds no checkpoint"
    )


def test_convert_with_force_replaces_what_was_there(
    families: dict[str, Path], tmp_path: Path
) -> None:
    megatron = tmp_path / "megatron"
    convert_hf_to_megatron(str(families["qwen3"]), str(megatron), 2)
    (megatron / "stale").write_text("")
    convert_hf_to_megatron(str(families["qwen3"]), str(megatron), 1, force=True)
    assert not (megatron / "stale").exists()
    assert not (megatron / "release" / "__1_0.distcp").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["megatron"]


def test_round_trip_keeps_a_sentencepiece_tokenizer(
    families: dict[str, Path], tmp_path: Path
) -> None:
    source = shutil.copytree(families["llama"], tmp_path / "model")
    (source / "tokenizer.json").unlink()
    trained = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["one and one is two", "two and one is three"] * 50),
        model_writer=trained,
        vocab_size=40,
        model_type="bpe",
        byte_fallback=False,
        minloglevel=2,
    )
    (source / "tokenizer.model").write_bytes(trained.getvalue())
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": True}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    megatron, back = tmp_path / "megatron", tmp_path / "back"
    convert_hf_to_megatron(str(source), str(megatron))
    convert_megatron_to_hf(str(megatron), str(back))
    text = "three and one is two and two"
    expected = SentencePieceProcessor(model_proto=trained.getvalue()).encode(text)
    for folder in (source, megatron, back):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer(text, add_special_tokens=False).input_ids == expected, folder
