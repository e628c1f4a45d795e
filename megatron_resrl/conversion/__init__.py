"""Checkpoints of Hugging Face and of Megatron into each other, offline and in little memory."""
