"""vLLM servers: started or found, watched, given requests."""
