"""What gives a run its meaning, compared between its ranks and with the checkpoint it continues."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from megatron_resrl.config.load import recipe_yaml
from megatron_resrl.config.schema import RunSettings
from megatron_resrl.errors import InputError
from megatron_resrl.platform.distributed import gather_objects
from megatron_resrl.platform.places import Place, own_place
from megatron_resrl.user_files import split_name
from megatron_resrl.weights.model_digest import model_digests

HARMLESS = (
    *("output_dir", "steps", "time_budget"),
    *("parallel.", "precision.", "optimizer.", "vllm.", "checkpoint."),
    *("evaluation.", "health.", "logging."),
    *("model.recompute_granularity", "model.recompute_method", "model.recompute_num_layers"),
    *("rollout.engine", "rollout.placement", "rollout.verify_weights", "rollout.record"),
    *("rollout.max_running_samples", "rollout.environment_processes"),
    "rollout.environment_patience_s",
    *("teacher.url", "teacher.timeout_s", "teacher.retries"),
    *("reward.workers", "reward.timeout_s", "reward.memory_gb", "reward.code."),
    *("correction.warn_kl", "correction.stop_kl"),
    *("algorithm.micro_batch_size", "algorithm.sequence_packing", "algorithm.single_pass"),
    "algorithm.shared_prompts",
    *("algorithm.max_tokens_per_micro_batch", "algorithm.max_tokens_per_scoring_micro_batch"),
    *("batch.micro_batch_size", "batch.sequence_packing", "batch.tokens_per_micro_batch", "epochs"),
    "batch.shared_prefixes",
    *("resrl.subspace_method", "resrl.window_tokens"),
    *("resrl.diagnose_every", "resrl.interference_tokens", "resrl.logit_factor"),
)
"""Settings that may change when a run is resumed, or with a dot at the end whole sections. They
leave what is optimised as it is, or are meant to be changed on the way; any other setting does
not. What the optimizer cannot take is refused with the checkpoint."""

_BY_CONTENT = (
    *("model.path", "model.tokenizer_path", "data.train_files", "evaluation.files"),
    *("evaluation.suites", "evaluation.suites_dir"),
    "teacher.path",
    *("reward.function", "rollout.environment"),
)
"""Settings that name a place: what lies there counts."""

_SHOWN_DIFFERENCES = 8


@dataclass(frozen=True)
class Identity:
    """Of a run, as one rank sees it."""

    settings: dict[str, Any]
    """Dotted name -> value, as YAML has it."""
    contents: dict[str, str]
    """What lies where settings point to, by name: digests and numbers."""
    unused: tuple[str, ...] = ()
    """Settings, or with a dot at the end sections, that this run does not read."""

    def digest(self) -> str:
        """Of the contents that training depends on."""
        own = {name: what for name, what in self.contents.items() if _trains(name)}
        return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Changes:
    """How a run differs from the one that wrote a checkpoint; lines for people."""

    meaning: list[str]
    """Another run is trained from here on."""
    harmless: list[str]
    data: bool
    """The order of the questions has to begin anew."""


def identity_of(
    settings: RunSettings,
    contents: dict[str, str],
    unused: Sequence[str] = (),
    *,
    fresh_weights: bool = False,
) -> Identity:
    """What this rank would train.

    Args:
        settings: Of the run.
        contents: See `Identity.contents`; those of the model are added.
        unused: See `Identity.unused`.
        fresh_weights: The run uses no weights of `model.path`.

    Raises:
        InputError: A file of the model cannot be read.
    """
    model = model_digests(
        settings.model.path, settings.model.tokenizer_path, weights=not fresh_weights
    )
    own = {f"model: {what}": value for what, value in model.items()}
    return Identity(flat_settings(recipe_yaml(settings), settings), own | contents, tuple(unused))


def function_content(name: str) -> str:
    """What a setting of the form `path.py:name`, or a registered name, stands for.

    Raises:
        InputError: The file cannot be read.
    """
    found = split_name(name)
    if found is None:
        return name
    file, attribute = found
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    return f"{attribute} of {file.name}, digest {digest}"


def require_same_on_all_ranks(own: Identity) -> None:
    """Ends all ranks if one of them would train something else. Collective.

    Raises:
        InputError: On all ranks; it names what differs, and the hosts.
    """
    differences = rank_differences(gather_objects((own_place(), own)))
    if differences:
        error = InputError(
            "the ranks do not see the same run; give all hosts the same recipe, data, reward "
            "and model:\n" + "\n".join(f"  - {line}" for line in differences)
        )
        error.common = True
        raise error


def rank_differences(identities: Sequence[tuple[Place, Identity]]) -> list[str]:
    """What differs from rank 0, one line per rank and setting.

    Args:
        identities: Place and identity of each rank, in their order.
    """
    first_place, first = identities[0]
    lines = []
    for place, own in identities:
        for name, theirs, value in [
            *_differences(first.settings, own.settings, leave_out=_BY_CONTENT),
            *_differences(first.contents, own.contents),
        ]:
            lines.append(f"{name} is {value!r} on {place}, {theirs!r} on {first_place}")
    more = len(lines) - _SHOWN_DIFFERENCES
    return lines[:_SHOWN_DIFFERENCES] + ([f"and {more} more"] if more > 0 else [])


def changes(
    saved_recipe: str,
    saved_contents: dict[str, str] | None,
    own: Identity,
    defaults: RunSettings,
) -> Changes:
    """Compares with the run that wrote a checkpoint.

    Args:
        saved_recipe: Its recipe as YAML; empty: the checkpoint does not know it.
        saved_contents: Its contents; None: the checkpoint does not know them.
        own: Of this run.
        defaults: A recipe of this stage with nothing but defaults.
    """
    saved = flat_settings(saved_recipe, defaults)
    # A setting that the checkpoint's version did not have was what it is by default.
    before = flat_settings(recipe_yaml(defaults), defaults)
    saved = {name: saved.get(name, before.get(name)) for name in own.settings}
    if not saved_recipe:
        saved = own.settings
    meaning, harmless, data = [], [], False
    for name, before, now in _differences(saved, own.settings):
        if name in _BY_CONTENT and saved_contents is not None:
            continue
        line = f"{name}: {before!r} in the checkpoint, {now!r} now"
        # Of the data's settings, the questions that come of them are compared.
        of_content = name in _BY_CONTENT or (name.startswith("data.") and name != "data.shuffle")
        if of_content or _is_one_of(name, (*HARMLESS, *own.unused)):
            harmless.append(line)
        else:
            meaning.append(line)
            data |= name in ("seed", "data.shuffle")
    for name, before, now in _differences(saved_contents or own.contents, own.contents):
        line = f"{name}: {before} in the checkpoint, {now} now"
        (meaning if _trains(name) else harmless).append(line)
        data |= name.startswith("data:")
    return Changes(meaning, harmless, data)


def flat_settings(text: str, like: RunSettings) -> dict[str, Any]:
    """Dotted name -> value of a recipe with every setting written out.

    Dictionaries in a section's field stay whole.

    Args:
        text: The recipe as YAML.
        like: Says which names are sections.
    """
    return _flat_section(yaml.safe_load(text) or {}, like)


def _flat_section(values: dict[str, Any], like: Any) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        inner = getattr(like, name, None)
        if dataclasses.is_dataclass(inner) and isinstance(value, dict):
            below = _flat_section(value, inner)
            flat |= {f"{name}.{field}": each for field, each in below.items()}
        else:
            flat[name] = value
    return flat


def _differences(
    first: dict[str, Any], second: dict[str, Any], leave_out: Sequence[str] = ()
) -> list[tuple[str, Any, Any]]:
    names = [*first, *(name for name in second if name not in first)]
    return [
        (name, first.get(name), second.get(name))
        for name in names
        if name not in leave_out and first.get(name) != second.get(name)
    ]


def _is_one_of(name: str, patterns: Sequence[str]) -> bool:
    return any(name.startswith(each) if each[-1] == "." else name == each for each in patterns)


def _trains(content: str) -> bool:
    return not content.startswith("evaluation:")
