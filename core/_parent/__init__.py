"""cryohush: denoise cryo-EM particles from inside RELION and cryoSPARC."""

__version__ = "0.1.0"
