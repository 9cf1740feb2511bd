"""What a job shows its user: a montage of particles, power spectra, `logfile.pdf`."""
