"""Simulated particles and micrographs, from structures and maps to stacks with tables."""
