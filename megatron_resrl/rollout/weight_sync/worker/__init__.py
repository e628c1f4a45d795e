"""Modules for vLLM's own environment, where megatron_resrl may not be installed.

This folder is on a server's PYTHONPATH. Nothing in it imports megatron_resrl.
"""
