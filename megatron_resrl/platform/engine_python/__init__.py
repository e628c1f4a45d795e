"""Transformer Engine's own Python without its compiled part, on a machine that has none.

`pip install --no-deps transformer-engine` brings 1 MB of Python: modules, FP8 recipes, caches, what
is saved for backward, the optimizer. All kernels are functions of one compiled module,
`transformer_engine_torch`; whoever loads the Python files answers them with functions of its own.
"""
