"""Llama 2 and 3."""

from __future__ import annotations

from megatron_resrl.policy.families.family import Family


class Llama(Family):
    """`LlamaForCausalLM`: the usual kind."""

    architecture = "LlamaForCausalLM"
    model_type = "llama"

    @property
    def query_groups(self) -> int:
        """Number of key-value heads; as many as attention heads where config.json has none."""
        return self.config.get("num_key_value_heads") or self.config["num_attention_heads"]
