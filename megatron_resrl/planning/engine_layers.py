"""Process of a rank on Transformer Engine's layers, without its kernels."""

from __future__ import annotations

import importlib

from megatron_resrl.platform.fake_device.engine.install import install_engine

install_engine()
run_rank = importlib.import_module("megatron_resrl.planning.rank_process").run_rank
