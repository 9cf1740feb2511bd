"""The physics of an image: structure, projection, CTF, noise, and the normalisation of particles."""
