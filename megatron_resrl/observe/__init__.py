"""What a run tells: metrics, times and progress."""
