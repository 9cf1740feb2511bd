"""What a stack knows about each of its images: estimated in a first pass over a sample of it."""
