"""The schema with one setting that is read, checked, and then ignored."""

from __future__ import annotations

from megatron_resrl.config.load import SECTIONS, SETTINGS
from megatron_resrl.config.schema import Recipe

_IGNORED = """

def _ignore(cls, name):
    field = cls.__dataclass_fields__[name]
    default = field.default_factory() if callable(field.default_factory) else field.default
    # With a setter, which a frozen dataclass's constructor calls.
    setattr(cls, name, property(lambda self: default, lambda self, value: None))


_ignore({cls}, {name!r})
"""


def schema_without(source: str, setting: str) -> str:
    """The source of the schema, in which a setting always has its default.

    Args:
        source: Of megatron_resrl/config/schema.py.
        setting: Dotted name.

    Raises:
        ValueError: There is no such setting.
    """
    if setting not in SETTINGS:
        raise ValueError(f"there is no setting {setting!r}")
    section, _, name = setting.rpartition(".")
    cls = SECTIONS[section] if section else Recipe
    return source + _IGNORED.format(cls=cls.__name__, name=name)
