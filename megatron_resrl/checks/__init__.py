"""Checks of a recipe across its sections, before any long work; above all rooms that they ask."""
