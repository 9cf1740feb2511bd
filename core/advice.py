"""What denoised images are for: the sentences that all reports, forms and commands say."""

from __future__ import annotations

USE = (
    "Look at denoised images, pick and sort with them. Classify, refine, reconstruct, compute the FSC and "
    "deposit with the raw ones."
)
PICKING = "Pick on denoised micrographs; extract particles from the raw ones."
#: with the reason
TRUST = (
    f"{USE} A denoiser adds what it has learnt, the same to both half sets, so a resolution measured on "
    "denoised images is no evidence."
)
