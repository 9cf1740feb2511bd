"""Real noise from micrographs, and noise made like it."""
