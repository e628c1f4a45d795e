"""Process of a rank on megatron-core's own layers, whatever is installed."""

from __future__ import annotations

import importlib

from megatron_resrl.platform.engine_python.files import hide_engine

hide_engine()
run_rank = importlib.import_module("megatron_resrl.planning.rank_process").run_rank
