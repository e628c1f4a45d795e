"""How a run is getting on, read from its output directory alone; imports no torch."""
