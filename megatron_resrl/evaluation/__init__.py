"""How good a policy is on held-out questions."""
