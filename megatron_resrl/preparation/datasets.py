"""The public sets: where each is published, under which licence, and how its rows are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from megatron_resrl.data.rows import read_rows
from megatron_resrl.errors import InputError, closest
from megatron_resrl.preparation.calls import ANSWERS, bfcl_question, bfcl_rows, toolrl_question
from megatron_resrl.preparation.countdown import countdown_question
from megatron_resrl.preparation.maths import maths_question
from megatron_resrl.preparation.programs import (
    contest_question,
    function_question,
    mbpp_question,
    mbpp_rows,
)
from megatron_resrl.preparation.question import Format
from megatron_resrl.preparation.sources import Download

Rows = Iterator[tuple[str, dict[str, Any]]]
"""Each with where it stands."""


def _all_rows(paths: Sequence[Path]) -> Rows:
    for path in paths:
        yield from read_rows(path)


@dataclass(frozen=True)
class Dataset:
    """A public set of questions."""

    form: Format
    licence: str
    downloads: tuple[Download, ...]
    training: bool = False
    """Copies are removed by default; an evaluation keeps all of its questions."""
    read: Callable[[Sequence[Path]], Rows] = field(default=_all_rows)
    """The rows of its files."""
    page: str = ""
    """Where its files are listed, if they are not fetched from here."""


def _github(
    repository: str, commit: str, path: str, sha256: str | None, name: str = ""
) -> Download:
    url = f"https://raw.githubusercontent.com/{repository}/{commit}/{path}"
    return Download(url, sha256, name)


_MIT, _APACHE, _CC_BY = "MIT", "Apache-2.0", "CC-BY-4.0"
_MBPP = _github(
    *("OckBench/OckBench", "b72752a0ba5989d3c212675ec60d3eedcd838628"),
    "data/mbpp.jsonl",
    "ccf64ceae9c5403bf50a044cb6d505bfd2a2963ee58338ba268fd65beab92a9f",
)
_BFCL_SHA256 = {
    "simple_python": "82dd63ba502eb2520c6b5d1d9a5c4b590e03ff261565175561f6228a367d1991",
    "multiple": "aef168155ebd74b7ac2401198b201343bc7d16d7a3d7e0d4e6d8ee82c6969b2a",
    "parallel": "19f51a82eff42e5d62541aa500115a056eb78f437c2ba1f10415fd7c8e5dda84",
    "parallel_multiple": "8863ea8433239f55c5f016154cf0830853c89f693c6ea270396a2fa121960579",
    "irrelevance": "2b6ed4c2e992cdcf5f1678a701851f944bef7550ee026ed1ddb89efed5be01a6",
}
_BFCL_ANSWERS_SHA256 = {
    "simple_python": "90cd5bc653690ee8e459b5b3f3fc9458606f7f3fcbf795bb51b7dc581f8c86dc",
    "multiple": "244e00ce9395df948bcafc7bee64e8f9c87ef70887587d83cae45b13699f3047",
    "parallel": "8a6aa19c1adddc6a5a2f7e40f9dbf30cc7e95815e7b830c90589ab318229e0f0",
    "parallel_multiple": "5ebf24f458c1f16300c05505d83d6f0a1b68b79be273a033febd0d4f840507e3",
}


def _bfcl() -> tuple[Download, ...]:
    """Questions of one turn in Python, with their answers."""
    answers = {f"{ANSWERS}/{name}": sha256 for name, sha256 in _BFCL_ANSWERS_SHA256.items()}
    found = []
    for key, sha256 in (_BFCL_SHA256 | answers).items():
        folder, _, name = f"/{key}".rpartition("/")
        path = f"{folder}/BFCL_v4_{name}.json".lstrip("/")
        found.append(
            _github(
                *("ShishirPatil/gorilla", "6ea57973c7a6097fd7c5915698c54c17c5b1b6c8"),
                f"berkeley-function-call-leaderboard/bfcl_eval/data/{path}",
                *(sha256, f"bfcl/{path}"),
            )
        )
    return tuple(found)


def _toolrl(part: str, sha256: str | None) -> Download:
    return _github(
        *("qiancheng0/ToolRL", "8cee13ec0ca72f0461da372a93a6fd8140dbb840"),
        f"dataset/rlla_4k/{part}.parquet",
        *(sha256, f"toolrl_{part}.parquet"),
    )


def _uft(part: str, sha256: str) -> Download:
    return _github(
        *("liumy2010/UFT", "ad3c8ec7d258d4e4cf3f359dd75925d0f127a520"),
        f"data/countdown/{part}.parquet",
        *(sha256, f"countdown_{part}.parquet"),
    )


def _hugging_face(repository: str, part: str) -> Download:
    """A part of a data set that Hugging Face serves as Parquet."""
    url = f"https://huggingface.co/datasets/{repository}/resolve/refs%2Fconvert%2Fparquet"
    name = f"{repository.rpartition('/')[2]}/{part}.parquet"
    return Download(f"{url}/{part}/0000.parquet", None, name)


_GSM8K = (
    "openai/grade-school-math",
    "3101c7d5072418e28b9008a6636bde82a006892c",
    "grade_school_math/data",
)
_SIMPLE_RL = (
    "hkust-nlp/simpleRL-reason",
    "cf1c7858bfc145a27aa733e75d930d34f0d318a6",
    "examples/simplelr_math_eval/data",
)
_RLVR = ("TianHongZXY/RLVR-Decomposed", "a5d4e7c1df6016ebd7396bd6db83d885120adb6d", "data")


def _simple_rl(folder: str, sha256: str, name: str) -> Dataset:
    repository, commit, base = _SIMPLE_RL
    download = _github(repository, commit, f"{base}/{folder}/test.jsonl", sha256, f"{name}.jsonl")
    return Dataset(maths_question, _MIT, (download,))


def _maths(
    place: tuple[str, str, str], path: str, sha256: str, name: str, licence: str, *, training: bool
) -> Dataset:
    repository, commit, base = place
    download = _github(repository, commit, f"{base}/{path}", sha256, name)
    return Dataset(maths_question, licence, (download,), training)


DATASETS: dict[str, Dataset] = {
    "gsm8k": _maths(
        *(_GSM8K, "test.jsonl"),
        "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
        *("gsm8k.jsonl", _MIT),
        training=False,
    ),
    "gsm8k_train": _maths(
        *(_GSM8K, "train.jsonl"),
        "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
        *("gsm8k_train.jsonl", _MIT),
        training=True,
    ),
    "math_train": _maths(
        *(_RLVR, "math/train.parquet"),
        "964fc8055e7febe17a52de2f015c050c2a2da408aac5d9e205d950141f204b05",
        *("math_train.parquet", _APACHE),
        training=True,
    ),
    "dapo_math_17k": _maths(
        ("MasterVito/SvS", "9fd8f35375b31b8632b52e715296c264a3ad4176", "data"),
        "dapo_math_17k.parquet",
        "246ae23df97c9eae8126cb4da780e9a0a31d10110e16eed144bcecbf2132d535",
        *("dapo_math_17k.parquet", _APACHE),
        training=True,
    ),
    "aime24": _simple_rl(
        "aime24", "af2b8bd2aa911b6333ad0df32f3ca05c7ae8ed10f1731f4372c8ae26990bf7ac", "aime24"
    ),
    "aime25": _maths(
        *(_RLVR, "aime2025/test.parquet"),
        "7756f285a5dc5f3a0475d0b5b9b65a30cbfe63bb72e72c20215f040de7c2230d",
        *("aime25.parquet", _APACHE),
        training=False,
    ),
    "amc23": _simple_rl(
        "amc23", "43707e1ca784602d8479de24ee8ce36609dbebc46dd152b0b12a46611aa898a4", "amc23"
    ),
    "math500": _simple_rl(
        "math500", "35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132", "math500"
    ),
    "minerva": _simple_rl(
        "minerva_math",
        "0e656b430d3a0a1dab6aa853f453ba3805e28e2cabe4fc72486a897cc09d8ba2",
        "minerva",
    ),
    "olympiad": _simple_rl(
        "olympiadbench",
        "bb8c1e38a16ea9eacb77530315a674d883f267fbff79183effc53681b4fcc416",
        "olympiad",
    ),
    "humaneval": Dataset(
        function_question,
        _MIT,
        (
            _github(
                *("openai/human-eval", "6d43fb980f9fee3c892a914eda09951f772ad10d"),
                "data/HumanEval.jsonl.gz",
                "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
            ),
        ),
    ),
    "humaneval_plus": Dataset(
        function_question, _APACHE, (_hugging_face("evalplus/humanevalplus", "default/test"),)
    ),
    "mbpp": Dataset(mbpp_question, _CC_BY, (_MBPP,), read=partial(mbpp_rows, 11, 510)),
    "mbpp_train": Dataset(
        mbpp_question, _CC_BY, (_MBPP,), training=True, read=partial(mbpp_rows, 601, 974)
    ),
    "mbpp_plus": Dataset(
        mbpp_question, _APACHE, (_hugging_face("evalplus/mbppplus", "default/test"),)
    ),
    "livecodebench": Dataset(
        contest_question,
        "CC (the contests' authors)",
        tuple(
            Download(
                "https://huggingface.co/datasets/livecodebench/code_generation_lite/resolve/main/"
                f"test{part}.jsonl",
                None,
                f"livecodebench/test{part}.jsonl",
            )
            for part in ("", 2, 3, 4, 5, 6)
        ),
    ),
    "codeforces": Dataset(
        contest_question, _CC_BY, (), page="https://huggingface.co/datasets/open-r1/codeforces"
    ),
    "deepcoder": Dataset(
        contest_question,
        _MIT,
        (),
        training=True,
        page="https://huggingface.co/datasets/agentica-org/DeepCoder-Preview-Dataset",
    ),
    "bfcl": Dataset(bfcl_question, _APACHE, _bfcl(), read=bfcl_rows),
    "toolrl": Dataset(toolrl_question, _APACHE, (_toolrl("train", None),), training=True),
    "toolrl_test": Dataset(
        toolrl_question,
        _APACHE,
        (_toolrl("test", "f7f300ebe755fd04985c83e18097d5a94a08619d72809fe06128ed3f00da7554"),),
    ),
    "countdown": Dataset(
        countdown_question,
        _APACHE,
        (_uft("test", "aef0cbfc076b527d3b89f7c14a679bd0c8426a4294285b78366df5b49d9dcd02"),),
    ),
    "countdown_train": Dataset(
        countdown_question,
        _APACHE,
        (_uft("train", "33f346623a744da8ea00305e6a9b8a46d452354251f166bfcf30589db1909045"),),
        training=True,
    ),
}
"""Name of the set, and of the file that is made of it."""


def find_dataset(name: str) -> Dataset:
    """A set by its name.

    Raises:
        InputError: There is none; names the nearest.
    """
    if name in DATASETS:
        return DATASETS[name]
    near = closest(name, DATASETS)
    fix = f"did you mean {near}?" if near else f"there are {', '.join(DATASETS)}"
    raise InputError(f"--dataset = {name!r}: there is no such set; {fix}")
