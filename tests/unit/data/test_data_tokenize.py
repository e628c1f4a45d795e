"""From messages to token ids."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from megatron_resrl.config.problems import InputError
from megatron_resrl.data.prompts import PromptRecord, tokenize_prompts

from .tiny_tokenizer import build_tokenizer
