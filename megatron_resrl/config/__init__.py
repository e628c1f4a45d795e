"""Settings: their schema, how they are loaded, and the checks across sections."""
