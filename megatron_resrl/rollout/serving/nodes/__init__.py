"""Servers on several nodes: who starts them, and how rank 0 hears of them."""
