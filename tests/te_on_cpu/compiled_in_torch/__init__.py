"""Transformer Engine's compiled functions, answered in torch on a CPU.

Transformer Engine's own Python runs on them: its parameter names, its checks of shapes and masks,
its choice of attention, its ring of context-parallel ranks, its FP8 recipes and caches, what it
saves for backward, its optimizer. A function that is not answered raises when it is called.
"""
