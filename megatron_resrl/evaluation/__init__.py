"""How good the policy is on held-out questions."""
