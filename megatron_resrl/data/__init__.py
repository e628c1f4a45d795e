"""From files of questions to batches of tokens."""
