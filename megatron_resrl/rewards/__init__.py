"""Reward functions, and the processes that run them. Light to import: grader processes do it."""
