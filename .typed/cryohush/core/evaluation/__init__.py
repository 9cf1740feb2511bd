"""How good denoised images are: comparisons, and what the report shows of each."""
