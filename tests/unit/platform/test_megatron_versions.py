"""What is answered where versions of megatron-core differ."""

from __future__ import annotations

import functools
import importlib.util
import logging
import warnings

import pytest
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec

from megatron_resrl.errors import InputError
from megatron_resrl.platform import megatron_versions
from megatron_resrl.platform.megatron_versions import (
    module_of,
    require_triton,
    silence_notices,
    submodules_of,
    take_common_state,
)


class Alternative(MLP):
    """With the constructor that specifications name since 0.18."""

    @classmethod
    def as_submodule(cls, **options: object) -> None: ...


@pytest.mark.parametrize(
    ("version", "triton", "refused"),
    [("0.16.1", False, False), ("0.18.0", False, True), ("0.19.2", True, False)],
)
def test_triton_is_required_where_it_is_imported(
    version: str, triton: bool, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(megatron_versions.metadata, "version", {"megatron-core": version}.get)
    found = importlib.util.find_spec("json") if triton else None
    monkeypatch.setattr(importlib.util, "find_spec", {"triton": found}.get)
    if refused:
        with pytest.raises(InputError, match=f"megatron-core {version} imports triton.*install"):
            require_triton()
    else:
        require_triton()


def test_specifications_of_both_kinds_say_what_they_build() -> None:
    parts = MLPSubmodules(linear_fc1=int, linear_fc2=float)
    for spec in (
        ModuleSpec(module=Alternative, submodules=parts),
        functools.partial(Alternative, submodules=parts),
        functools.partial(Alternative.as_submodule, submodules=parts),
    ):
        assert module_of(spec) is Alternative
        assert submodules_of(spec) is parts


def test_common_state_is_taken_out_of_what_is_saved() -> None:
    weight = object()
    state = {"model0": weight, "common_state": ShardedObject("common_state", {"n": 3}, (1,), (0,))}
    assert take_common_state(state) == {"n": 3}
    assert state == {"model0": weight}
    assert take_common_state(state) is None


def test_notices_of_megatron_core_alone_are_silent(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("megatron.core.models.gpt.gpt_model")
    with warnings.catch_warnings(record=True) as seen:
        silence_notices()
        logger.warning("GPTModel IS DEPRECATED. GPTModel is only accepting ...")
        logger.warning("something else")
        warnings.warn("MimoModelConfig is experimental and still", UserWarning, stacklevel=1)
        warnings.warn("another", UserWarning, stacklevel=1)
    assert caplog.messages == ["something else"]
    assert [str(each.message) for each in seen] == ["another"]
