"""Training loops: how rollouts, rewards, weights and updates make a step."""
