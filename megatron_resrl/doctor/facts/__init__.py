"""What is so, on each rank, each host and between them. Nothing is judged here."""
