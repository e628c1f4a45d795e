"""Token files out of text: those of megatron-core's builder, whatever happens on the way."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import IndexedDataset
from token_files import build_from_texts, same_bytes, save_tokenizer, write_lines
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from megatron_resrl.corpus import text_files, unfinished
from megatron_resrl.corpus.dataset import check_indexed_dataset
from megatron_resrl.corpus.encoding import Counts, DocumentFormat, Encoder, encode_shard
from megatron_resrl.corpus.manifest import check_tokenizer, read_manifest
from megatron_resrl.corpus.preprocess import PreprocessReport, preprocess_data
from megatron_resrl.corpus.processes import AHEAD, encode_shards
from megatron_resrl.corpus.text_files import Position, Shard
from megatron_resrl.errors import InputError, RunError

TEXTS = [f"the text {number} of that \u00e4\U0001f600 " * (number % 9) for number in range(300)]
FILLED = [text for text in TEXTS if text]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"), bos_token="<s>")


@pytest.fixture(scope="module")
def expected(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    return build_from_texts(tmp_path_factory.mktemp("expected") / "a", FILLED, loaded)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some thirty shards, each saved."""
    monkeypatch.setattr(text_files, "SHARD_BYTES", 2000)
    monkeypatch.setattr(unfinished, "SAVE_BYTES", 0)


def write_input(folder: Path) -> list[str]:
    half = len(TEXTS) // 2
    first = write_lines(folder / "a.jsonl", TEXTS[:half])
    return [first, write_lines(folder / "b.jsonl", TEXTS[half:])]


def run(folder: Path, tokenizer: Path, **options: object) -> PreprocessReport:
    inputs = [str(folder / "a.jsonl"), str(folder / "b.jsonl")]
    return preprocess_data(inputs, str(folder / "out"), str(tokenizer), **options)


@pytest.mark.parametrize("workers", [1, 2])
def test_preprocess_writes_what_megatron_core_writes(
    tmp_path: Path, tokenizer: Path, expected: Path, small_shards: None, workers: int
) -> None:
    write_input(tmp_path)
    report = run(tmp_path, tokenizer, workers=workers)
    prefix = tmp_path / "out_text_document"
    assert report.prefix == str(prefix)
    assert same_bytes(prefix, expected)
    written = IndexedDataset(str(prefix))
    assert len(written) == report.counts.documents == len(FILLED)
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    assert loaded.decode(written[5]) == FILLED[5] + "</s>"
    assert report.counts.empty == len(TEXTS) - len(FILLED)
    assert report.counts.tokens == sum(written.sequence_lengths)
    assert report.counts.text_bytes == sum(len(text.encode()) for text in TEXTS)
    assert report.compared == 16  # The first documents of both files.
    assert f"documents    {len(FILLED)}" in str(report)
    assert sorted(path.name for path in tmp_path.glob("out*")) == [
        f"out_text_document.{ending}" for ending in ("bin", "idx", "json")
    ]


def killed(folder: Path, tokenizer: Path, arm: Callable[[], None]) -> int | None:
    """Exit code of a process that runs the command after `arm` has set when it kills itself."""

    def body() -> None:
        arm()
        run(folder, tokenizer, workers=1)

    process = multiprocessing.get_context("fork").Process(target=body)
    process.start()
    process.join()
    return process.exitcode


def kill_at(owner: object, name: str, call: int, *, after: bool) -> Callable[[], None]:
    """Makes a process kill itself before or after call number `call` of a function."""

    def arm() -> None:
        original = getattr(owner, name)
        calls = iter(range(10**6))

        def counted(*args: object, **kwargs: object) -> object:
            last = next(calls) == call
            if last and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            returned = original(*args, **kwargs)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)
            return returned

        setattr(owner, name, counted)

    return arm


FILES = unfinished.UnfinishedFiles
KILLS: dict[str, tuple[Callable[[], None], range]] = {
    # Where the process dies, and how many documents may be finished then.
    "at the start": (kill_at(FILES, "_save", 0, after=True), range(1)),
    "in the first file": (kill_at(FILES, "append", 3, after=True), range(1, 133)),
    "before a save": (kill_at(FILES, "_save", 9, after=False), range(1, 133)),
    "in the second file": (kill_at(FILES, "append", 17, after=True), range(133, 266)),
    "before the index": (kill_at(FILES, "write_index", 0, after=False), range(266, 267)),
    "before publishing": (kill_at(FILES, "publish", 0, after=False), range(266, 267)),
    "before the end": (kill_at(unfinished.shutil, "rmtree", 0, after=False), range(266, 267)),
}


@pytest.mark.parametrize("where", KILLS)
def test_preprocess_goes_on_after_sigkill(
    tmp_path: Path, tokenizer: Path, expected: Path, small_shards: None, where: str
) -> None:
    write_input(tmp_path)
    arm, finished = KILLS[where]
    assert killed(tmp_path, tokenizer, arm) == -signal.SIGKILL
    report = run(tmp_path, tokenizer, workers=2)
    assert report.resumed in finished
    assert same_bytes(tmp_path / "out_text_document", expected)
    assert not list(tmp_path.glob("*.incomplete"))


def test_preprocess_goes_on_between_the_names_of_both_files(
    tmp_path: Path, tokenizer: Path, expected: Path
) -> None:
    write_input(tmp_path)

    def arm() -> None:
        original = os.replace

        def replace(source: Path, target: Path) -> None:
            if str(target).endswith(".idx"):
                os.kill(os.getpid(), signal.SIGKILL)
            original(source, target)

        os.replace = replace

    assert killed(tmp_path, tokenizer, arm) == -signal.SIGKILL
    assert (tmp_path / "out_text_document.bin").exists()
    assert run(tmp_path, tokenizer, workers=1).resumed == len(FILLED)
    assert same_bytes(tmp_path / "out_text_document", expected)


def test_preprocess_cuts_off_what_was_not_saved(
    tmp_path: Path, tokenizer: Path, expected: Path, small_shards: None
) -> None:
    write_input(tmp_path)
    killed(tmp_path, tokenizer, kill_at(FILES, "append", 3, after=True))
    folder = tmp_path / "out_text_document.incomplete"
    for name in ("tokens.bin", "lengths"):
        with (folder / name).open("ab") as file:
            file.write(b"half a shard")
    run(tmp_path, tokenizer, workers=1)
    assert same_bytes(tmp_path / "out_text_document", expected)


def test_preprocess_goes_on_with_the_same_plan_alone(
    tmp_path: Path, tokenizer: Path, small_shards: None
) -> None:
    write_input(tmp_path)
    killed(tmp_path, tokenizer, kill_at(FILES, "append", 3, after=True))
    with pytest.raises(InputError, match="unfinished work with another --prepend_bos; give the"):
        run(tmp_path, tokenizer, workers=1, prepend_bos=True)
    with (tmp_path / "b.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(InputError, match="unfinished work with another --input"):
        run(tmp_path, tokenizer, workers=1)
    report = run(tmp_path, tokenizer, workers=1, force=True)
    assert (report.resumed, report.counts.documents) == (0, len(FILLED))


def test_preprocess_notices_lost_unfinished_work(
    tmp_path: Path, tokenizer: Path, small_shards: None
) -> None:
    write_input(tmp_path)
    killed(tmp_path, tokenizer, kill_at(FILES, "append", 3, after=True))
    (tmp_path / "out_text_document.incomplete" / "lengths").write_bytes(b"")
    with pytest.raises(InputError, match=r"lengths has 0 bytes, and state\.json beside it counts"):
        run(tmp_path, tokenizer, workers=1)


def test_preprocess_replaces_files_only_if_forced(tmp_path: Path, tokenizer: Path) -> None:
    write_input(tmp_path)
    run(tmp_path, tokenizer, workers=1)
    with pytest.raises(InputError, match=r"out_text_document\.bin exists; .* give --force"):
        run(tmp_path, tokenizer, workers=1)
    report = run(tmp_path, tokenizer, workers=1, force=True, append_eod=False)
    assert report.counts.tokens == check_indexed_dataset(report.prefix, None).tokens
    assert read_manifest(report.prefix).eod_id is None


def test_preprocess_lets_one_process_write_at_a_time(tmp_path: Path, tokenizer: Path) -> None:
    write_input(tmp_path)
    prefix = tmp_path / "out_text_document"

    def body() -> None:
        with pytest.raises(InputError, match="another process writes there"):
            run(tmp_path, tokenizer, workers=1, force=True)

    with FILES(prefix, {"input": "another"}, numpy.dtype("uint16"), force=False):
        other = multiprocessing.get_context("fork").Process(target=body)
        other.start()
        other.join()
    assert other.exitcode == 0


ODD = st.one_of(
    st.sampled_from(["", " \n\t", "\ufeff", "</s>", "\0", "\u2028 the text " * 20_000]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
)


@settings(max_examples=15)
@given(texts=st.lists(ODD, min_size=1, max_size=12), size=st.sampled_from([1, 300, 4 << 20]))
def test_preprocess_writes_odd_text_as_megatron_core_does(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Path, texts: list[str], size: int
) -> None:
    folder = tmp_path_factory.mktemp("odd")
    texts = [*texts, "the end"]
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    filled = [text for text in texts if text.strip()]
    expected = build_from_texts(folder / "expected", filled, loaded)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(text_files, "SHARD_BYTES", size)
        lines = write_lines(folder / "a.jsonl", texts)
        report = preprocess_data([lines], str(folder / "out"), str(tokenizer), workers=1)
    assert same_bytes(Path(report.prefix), expected)
    assert report.counts.empty == len(texts) - len(filled)


def test_preprocess_holds_few_shards_in_memory(tmp_path: Path, tokenizer: Path) -> None:
    read = 0

    def shards() -> Iterator[Shard]:
        nonlocal read
        while read < 40:
            read += 1
            content = json.dumps({"text": "the text"}).encode()
            yield Shard(tmp_path, "jsonl", content, Position(), Position(1), 1)

    form = DocumentFormat("text", "file", (), (), drop_unreadable=False)
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    results = encode_shards(shards(), loaded, form, numpy.dtype("uint16"), 2)
    for written, _ in enumerate(results):
        assert read - written <= 2 * AHEAD + 2
    assert (written, read) == (39, 40)


def test_preprocess_begins_documents_with_bos_if_asked(tmp_path: Path, tokenizer: Path) -> None:
    write_input(tmp_path)
    report = run(tmp_path, tokenizer, workers=1, prepend_bos=True)
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    # Arrays of a dataset that is gone point nowhere.
    written = IndexedDataset(report.prefix)
    assert loaded.decode(written[0]) == f"<s>{FILLED[0]}</s>"


def test_preprocess_drops_unreadable_documents_if_asked(
    tmp_path: Path,
    tokenizer: Path,
    expected: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(text_files, "SHARD_BYTES", 2000)  # Saved when the command ends.
    write_input(tmp_path)
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write("{broken\n")
    with pytest.raises(InputError, match=r"line 151: it is not JSON.*--unreadable drop"):
        run(tmp_path, tokenizer, workers=1)
    # The finished shards count: the two ways differ in nothing else.
    report = run(tmp_path, tokenizer, workers=1, unreadable="drop")
    assert report.resumed > 0
    assert report.counts.unreadable == read_manifest(report.prefix).unreadable_documents == 1
    assert same_bytes(Path(report.prefix), expected)
    assert "left out: " in capfd.readouterr().err


def test_preprocess_notices_a_tokenizer_that_changes_its_mind(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_input(tmp_path)
    monkeypatch.setattr(Encoder, "one", lambda self, text: [1, 2, 3])
    with pytest.raises(RunError, match=r"document 0 of .* differs from the tokens of its text"):
        run(tmp_path, tokenizer, workers=1)


def test_preprocess_explains_a_killed_worker(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_input(tmp_path)
    monkeypatch.setattr(Encoder, "__call__", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(RunError, match=r"process that tokenizes was killed.* fewer --workers"):
        run(tmp_path, tokenizer, workers=1)


REFUSED = {
    "workers": ({"workers": 0}, "--workers is 0; it must be at least 1"),
    "key": ({"text_key": "body"}, "a.jsonl, line 1: there is no 'body'; give one of text"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_preprocess_refuses_what_it_cannot_use(tmp_path: Path, tokenizer: Path, case: str) -> None:
    write_input(tmp_path)
    options, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        run(tmp_path, tokenizer, **({"workers": 1} | options))
    assert not list(tmp_path.glob("out*"))


def test_preprocess_refuses_tokenizers_it_cannot_use(tmp_path: Path, tokenizer: Path) -> None:
    write_input(tmp_path)
    with pytest.raises(InputError, match=r"there is no such directory; .* tools/train_tokenizer"):
        run(tmp_path, tmp_path / "none")
    without = save_tokenizer(tmp_path / "without_bos")
    with pytest.raises(InputError, match="has no bos_token; give --prepend_bos false"):
        run(tmp_path, without, prepend_bos=True)


def test_preprocess_refuses_input_without_text(tmp_path: Path, tokenizer: Path) -> None:
    empty = write_lines(tmp_path / "a.jsonl", ["", " \n"])
    with pytest.raises(InputError, match="--input holds no text: 2 documents, all of them empty"):
        preprocess_data([empty], str(tmp_path / "out"), str(tokenizer), workers=1)


def test_manifest_tells_another_vocabulary(tmp_path: Path, tokenizer: Path) -> None:
    write_input(tmp_path)
    report = run(tmp_path, tokenizer, workers=1)
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    manifest = check_tokenizer(report.prefix, loaded)
    assert (manifest.documents, manifest.eod_id) == (len(FILLED), loaded.eos_token_id)
    # Another release, or template, may write the same tokenizer differently.
    loaded.chat_template = "{{ messages }}"
    loaded.save_pretrained(tmp_path / "again")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert check_tokenizer(report.prefix, again) == manifest
    again.add_tokens(["more"])
    with pytest.raises(InputError, match=r"made with the tokenizer of .* whose vocabulary differs"):
        check_tokenizer(report.prefix, again)
    assert check_tokenizer(tmp_path / "by_megatron_lm", again) is None
    Path(f"{report.prefix}.json").write_text("{}")
    with pytest.raises(InputError, match="is no manifest"):
        check_tokenizer(report.prefix, again)


@settings(max_examples=60)
@given(text=st.text(st.characters(exclude_categories=["Cs"])), times=st.sampled_from([1, 1, 3000]))
def test_encoder_equals_transformers(tokenizer: Path, text: str, times: int) -> None:
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    loaded.backend_tokenizer.enable_truncation(5)  # As some files have it.
    texts = [text * times, "</s> the", ""]
    plain = AutoTokenizer.from_pretrained(tokenizer)
    expected = [plain.encode(each, add_special_tokens=False) for each in texts]
    assert Encoder(loaded)(texts) == expected


def test_encoder_leaves_a_class_of_its_own_alone(tokenizer: Path) -> None:
    class Shouting(PreTrainedTokenizerFast):
        def _encode_plus(self, text: str, **options: object) -> object:
            return super()._encode_plus(text.upper(), **options)

    plain = AutoTokenizer.from_pretrained(tokenizer)
    encoder = Encoder(Shouting.from_pretrained(tokenizer))
    assert encoder(["that"]) == [plain.encode("THAT", add_special_tokens=False)]


def test_encode_shard_refuses_ids_beyond_the_type(tokenizer: Path) -> None:
    content = json.dumps({"text": "the"}).encode()
    shard = Shard(Path("a"), "jsonl", content, Position(), Position(1), 1)
    form = DocumentFormat("text", "file", (), (300,), drop_unreadable=False)
    encoder = Encoder(AutoTokenizer.from_pretrained(tokenizer))
    with pytest.raises(InputError, match=r"gives the token id \d+, which is not in its"):
        encode_shard(shard, encoder, form, numpy.dtype("uint8"))
    encoded = encode_shard(shard, encoder, form, numpy.dtype("uint16"))
    assert encoded.counts == Counts(documents=1, tokens=len(encoded.token_ids) // 2, text_bytes=3)
