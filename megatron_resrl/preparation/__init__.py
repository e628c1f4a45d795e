"""Public question files, formatted, without duplicates, and split."""
