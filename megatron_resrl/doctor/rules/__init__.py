"""What is wrong with the facts, and the remedy: pure functions, one module for each of `facts`."""
