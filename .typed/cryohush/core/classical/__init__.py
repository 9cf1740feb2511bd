"""Denoisers that need no training: filters by name, and the covariance Wiener filter."""
