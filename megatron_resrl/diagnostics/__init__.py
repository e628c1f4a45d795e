"""What is watched in a step and never learned from: metrics, diagnosis, records."""
