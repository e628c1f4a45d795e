"""What a job will hold, send and wait for, worked out without its devices."""
