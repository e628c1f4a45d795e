"""The library reasoning-gym, for tests of what needs it."""

from __future__ import annotations

import importlib.util

import pytest

needs_reasoning_gym = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None,
    reason="needs reasoning-gym: pip install 'megatron-resrl[reasoning-gym]'",
)
