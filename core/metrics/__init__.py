"""Figures of merit: against a clean or an independent image, by what it is for, and of what was invented.

`image` and `fourier` compare an image with its reference, `independent` with another noisy one; `picking`,
`clustering` and `pose` ask what a denoised image is good for; `hallucination` what a model adds. `picking`
and `clustering` need the extra `evaluate`, `pose` the extra `train`.
"""
