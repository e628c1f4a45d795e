"""What pretraining refuses before a process group exists: token files, batches, other settings."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_corpus import VOCABULARY, write_pretraining, write_tokens
from token_files import build

from megatron_resrl.checks.facts import gather_facts
from megatron_resrl.checks.recipe import check_recipe, inspect_recipe
from megatron_resrl.config.load import load_recipe
from megatron_resrl.config.problems import Problem, RecipeError
from megatron_resrl.config.schema import Recipe
from megatron_resrl.config.schema_pretrain import PretrainRecipe
from megatron_resrl.config.stages import STAGES
from megatron_resrl.corpus.manifest import Manifest, write_manifest

Refused = Callable[..., Problem]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, token files and a recipe."""
    directory = tmp_path_factory.mktemp("pristine")
    write_pretraining(directory)
    return directory


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pristine, tmp_path / "own")


@pytest.fixture
def check(folder: Path) -> Callable[..., list[Problem]]:
    """Problems of the good recipe with overrides."""

    def run(*overrides: str, world_size: int = 1) -> list[Problem]:
        own = (f"--model.path={folder / 'model'}", f"--data.train_files={folder / 'text'}")
        recipe = load_recipe(str(folder / "recipe.yaml"), (*own, *overrides), PretrainRecipe)
        return check_recipe(recipe, world_size, "pretrain")

    return run


@pytest.fixture
def refused(check: Callable[..., list[Problem]]) -> Refused:
    """The only problem of the good recipe with overrides, one line."""

    def run(*overrides: str, **options: Any) -> Problem:
        problems = check(*overrides, **options)
        assert len(problems) == 1, [str(problem) for problem in problems]
        assert "\n" not in str(problems[0])
        return problems[0]

    return run


def test_check_finds_nothing_in_a_good_recipe_of_pretraining(check, folder):
    assert check() == []
    assert check(world_size=2) == []
    other = write_tokens(folder, "other", seed=1)
    blend = f"[{{path: {folder}/text, weight: 0.25}}, {{path: {other}, weight: 0.75}}]"
    assert check(f"--data.train_files={blend}", "--data.validation_share=0.2") == []
    assert check(f"--data.validation_files=[{other}]") == []
    assert check("--batch.rampup_batch_size=[2, 2, 100]") == []


def test_check_says_what_a_step_of_pretraining_takes(folder):
    recipe = load_recipe(str(folder / "recipe.yaml"), (), PretrainRecipe)
    facts, _ = gather_facts(recipe, 1)
    assert facts.step_in_words == "4 sequences x 16 tokens, 64 in all"


def test_check_refuses_a_batch_that_copies_cannot_share(refused):
    problem = refused("--batch.global_batch_size=6", world_size=2)
    assert problem.setting == "batch.global_batch_size"
    assert problem.fix == "use a multiple of 4"


@pytest.mark.setting("pretrain:batch.micro_batch_size")
def test_check_refuses_a_batch_of_broken_micro_batches(refused):
    problem = refused("--batch.micro_batch_size=3")
    assert problem.setting == "batch.global_batch_size"
    assert "batch.micro_batch_size 3" in problem.problem


@pytest.mark.parametrize(
    ("rampup", "said"),
    [
        ("[0, 2, 10]", "a number is below 1"),
        ("[6, 2, 10]", "steps of 2 do not lead from 6 to batch.global_batch_size 4"),
        ("[1, 2, 10]", "steps of 2 do not lead from 1"),
        ("[3, 1, 10]", "its batch of 3 is not divisible by 1 data-parallel copies"),
    ],
)
def test_check_refuses_a_ramp_up_that_does_not_fit(refused, rampup, said):
    problem = refused(f"--batch.rampup_batch_size={rampup}")
    assert problem.setting == "batch.rampup_batch_size"
    assert said in problem.problem


def test_check_refuses_sequences_beyond_the_models_positions(refused):
    problem = refused("--data.sequence_length=129", "--batch.global_batch_size=2")
    assert problem.setting == "data.sequence_length"
    assert "max_position_embeddings 128" in problem.problem


def test_check_refuses_fewer_sequences_than_a_batch(refused):
    problem = refused("--batch.global_batch_size=86")
    assert problem.setting == "batch.global_batch_size"
    assert "the training files hold 83 sequences of 16 tokens" in problem.problem


def test_check_refuses_a_file_without_a_sequence(refused, folder):
    build(folder / "tiny", [[3, 4, 5]], VOCABULARY)
    problem = refused(f"--data.validation_files=[{folder / 'tiny'}]")
    assert problem.setting == "data.validation_files"
    assert "its 3 tokens are too few for a sequence of 16" in problem.problem
    problem = refused("--data.validation_share=0.001")
    assert problem.setting == "data.validation_share"
    assert "the last 0 documents" in problem.problem


def test_check_refuses_a_folder_for_orders_without_use(refused, folder):
    (folder / "file").write_text("")
    problem = refused(f"--data.cache_dir={folder / 'file' / 'cache'}")
    assert problem.setting == "data.cache_dir"
    assert problem.problem == f"{folder / 'file'} is a file"
    (folder / "cache").write_text("")
    assert refused().problem == f"{folder / 'cache'} is a file"


def test_check_refuses_nothing_to_train_on(refused):
    assert refused("--data.train_files=[]").problem == "there is nothing to train on"


def test_check_names_files_that_are_missing(refused, folder):
    problem = refused(f"--data.train_files={folder / 'tex'}")
    assert problem.setting == "data.train_files"
    assert problem.kind == "machine"
    assert "there is no file" in problem.problem
    assert problem.fix == f"did you mean {folder / 'text'}?"
    (folder / "text.bin").unlink()
    assert "text.bin" in refused().problem


def test_check_names_the_document_where_a_file_is_cut_off(refused, folder):
    path = folder / "text.bin"
    path.write_bytes(path.read_bytes()[:-10])
    problem = refused()
    assert problem.kind == "recipe"
    assert f"{path} is cut off in document 39 of 40" in problem.problem
    index = folder / "text.idx"
    index.write_bytes(index.read_bytes()[:40])
    assert "text.idx is cut off" in refused().problem


def test_check_names_the_document_with_a_foreign_token(refused, folder):
    build(folder / "text", [[3, 4] * 40, [5, VOCABULARY] * 40], 2 * VOCABULARY)
    problem = refused()
    assert "document 1 holds the token id 64, and the vocabulary has 64 tokens" in problem.problem


def test_check_refuses_tokens_of_another_tokenizer(refused, folder):
    manifest = Manifest(
        tokenizer="elsewhere",
        vocabulary_sha256="0" * 64,
        vocab_size=1000,
        bos_id=None,
        eod_id=1,
        dtype="uint16",
        text_key="text",
        text_documents="line",
        documents=40,
        tokens=1071,
        empty_documents=0,
        unreadable_documents=0,
        text_bytes=1,
        inputs=[],
    )
    write_manifest(folder / "text", manifest)
    problem = refused()
    assert "made with the tokenizer of elsewhere (1000 tokens)" in problem.problem
    assert problem.fix == "preprocess the text with the model's tokenizer"


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ("[{path: A, weight: 0.5}, {path: B, weight: 0.4}]", "the weights sum to 0.9"),
        ("[{path: A, weight: 0.5}, B]", "has no weight, and other files have one"),
        ("[{path: A, weight: -1}]", "its weight is -1"),
        ("[{path: A, weight: true}]", "its weight is True"),
        ("[{path: A, weihgt: 1}]", "no key 'weihgt'"),
        ("[{weight: 1}]", "its path is None"),
        ("[{path: A, name: 3}]", "its name is 3"),
        ("[A, A]", "two files share the name"),
    ],
)
def test_check_refuses_entries_that_say_nothing(refused, folder, entries, said):
    write_tokens(folder, "other", seed=1)
    entries = entries.replace("A", str(folder / "text")).replace("B", str(folder / "other"))
    problem = refused(f"--data.train_files={entries}")
    assert problem.setting == "data.train_files"
    assert said in problem.problem


def test_check_refuses_weights_of_validation_files(refused, folder):
    entry = f"{{path: {folder / 'text'}, weight: 1.0}}"
    problem = refused(f"--data.validation_files=[{entry}]")
    assert problem.setting == "data.validation_files"
    both = refused(f"--data.validation_files=[{folder / 'text'}]", "--data.validation_share=0.25")
    assert both.setting == "data.validation_share"


def test_check_wants_weights_only_where_they_are_used(refused, folder):
    problem = refused("--model.fresh_weights=false")
    assert "it has no *.safetensors file" in problem.problem


def test_check_refuses_half_a_loss_that_balances_experts(tmp_path):
    recipe = str(write_pretraining(tmp_path, experts=True))

    def problems(*overrides: str) -> list[Problem]:
        return check_recipe(load_recipe(recipe, overrides, PretrainRecipe), 1, "pretrain")

    coefficient = "--model.megatron.moe_aux_loss_coeff"
    kind = "--model.megatron.moe_router_load_balancing_type"
    assert problems(f"{coefficient}=0.01", f"{kind}=aux_loss") == []
    (alone,) = problems(f"{coefficient}=0.01")
    assert alone.fix == "set that to aux_loss"
    (other,) = problems(f"{coefficient}=0.01", f"{kind}=global_aux_loss")
    assert other.setting == "model.megatron.moe_router_load_balancing_type"
    (text,) = problems(f"{coefficient}=much", f"{kind}=aux_loss")
    assert text.problem == "no coefficient"


def test_check_names_the_stage_that_a_setting_is_of(folder):
    with pytest.raises(RecipeError, match="it is a section of train, not of pretrain"):
        load_recipe(str(folder / "recipe.yaml"), ["--rollout={group_size: 4}"], PretrainRecipe)
    with pytest.raises(RecipeError, match="it is a setting of pretrain, not of train"):
        load_recipe(None, ["--data.cache_dir=orders"], Recipe)


@pytest.mark.parametrize(
    ("stage", "recipe"),
    [
        (
            "train",
            "{rollout: {group_size: 4}, evaluation: {max_prompts: 2}}",
        ),
        ("sft", "{epochs: 2, batch: {sequence_packing: true}, data: {max_length: 8}}"),
        ("pretrain", "{batch: {global_batch_size: 4}, data: {sequence_length: 8}}"),
    ],
)
def test_check_names_the_stage_of_a_recipe_given_to_another(tmp_path, stage, recipe):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe)
    for command, kind in STAGES.items():
        if command == stage:
            load_recipe(str(path), [], kind)
            continue
        with pytest.raises(RecipeError) as raised:
            load_recipe(str(path), [], kind)
        said = str(raised.value)
        assert f"this looks like a recipe of {stage}: run megatron-resrl {stage}" in said
        assert f"check and plan: --stage {stage}" in said
        assert f"not of {command}" in said


def test_check_notes_a_warm_up_longer_than_the_run(folder):
    recipe = load_recipe(
        str(folder / "recipe.yaml"), ["--optimizer.lr_warmup_steps=9"], PretrainRecipe
    )
    notes = [each for each in inspect_recipe(recipe, 1, "pretrain") if each.kind == "note"]
    assert [each.setting for each in notes] == ["optimizer.lr_warmup_steps"]
