"""Reinforcement learning with verifiable rewards on megatron-core, with residual token weights."""

__version__ = "0.1.0"
