"""The schema with one setting that is read, checked, and then ignored."""

from __future__ import annotations

_IGNORED = """

def _ignore(cls, name):
    field = cls.__dataclass_fields__[name]
    default = field.default_factory() if callable(field.default_factory) else field.default
    # With a setter, which a frozen dataclass's constructor calls.
    setattr(cls, name, property(lambda self: default, lambda self, value: None))


_ignore({cls}, {name!r})
"""


def schema_without(source: str, cls: type, name: str) -> str:
    """The source of a schema, in which a setting always has its default.

    Args:
        source: Of a file of megatron_resrl/config that knows `cls`.
        cls: The dataclass.
        name: Of its field.
    """
    return source + _IGNORED.format(cls=cls.__name__, name=name)
