"""Jobs of Slurm: their scripts, checks before they are submitted, and what follows their end."""
