"""The trainable model: a megatron-core GPT built from a Hugging Face configuration."""
