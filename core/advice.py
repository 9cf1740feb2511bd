"""What denoised images are for: the sentences that all reports, forms and commands say."""

from __future__ import annotations

USE = (
    "Look at denoised images, pick blobs and sort with them. Classify, refine, reconstruct, compute the FSC "
    "and deposit with the raw ones."
)
PICKING = (
    "Pick blobs (LoG) on denoised micrographs; match RELION's templates on the raw ones, on which they find "
    "more. Extract particles from the raw micrographs."
)
#: with the reason
TRUST = (
    f"{USE} A denoiser adds what it has learnt, the same to both half sets, so a resolution measured on "
    "denoised images is no evidence."
)
COMPANY = (
    "Each image was denoised in the light of its stack, so images unlike the rest of it come out worse: with "
    "`context` none each is denoised by itself."
)
OF_MAP = (
    "A map of the particle took part: it puts up to a quarter of a domain that some particles lack into "
    "their images (in simulations)."
)
