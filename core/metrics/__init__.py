"""Figures of merit: per image, by Fourier ring, against independent images, and on pure noise."""
