"""Transformer Engine's compiled functions on the device without numbers.

Each is one kernel or a few, as on CUDA: its results take memory, its products and its traffic
count, and nothing is computed. Transformer Engine's own Python does the rest: what is kept for
backward, in which format, and what is gathered.
"""
