"""Text for pretraining: tokenizers trained on it, and token files of megatron-core made from it."""
