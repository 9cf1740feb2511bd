"""Many sources on many workers."""
