"""Questions that programs make, with the verifiers of their answers."""
