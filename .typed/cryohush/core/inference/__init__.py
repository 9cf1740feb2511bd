"""From weights and a particle set to denoised stacks."""
