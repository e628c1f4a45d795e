"""Responses: the engines that sample them, and how they become graded groups."""
