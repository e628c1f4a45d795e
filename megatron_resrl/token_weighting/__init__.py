"""Weights of the tokens of incorrect responses: the method, its controls, and others."""
