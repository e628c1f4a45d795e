"""New weights for rollout servers: from the trainer's layout to vLLM, in buckets."""
