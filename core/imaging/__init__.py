"""The physics of an image: structure, projection, CTF, noise, and the normalisation of particles."""

from ..first_calls import make_first_calls

make_first_calls()  # before any thread calculates
