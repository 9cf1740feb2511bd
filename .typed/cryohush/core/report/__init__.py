"""What a job shows its user: a montage of particles, power spectra, `logfile.pdf`."""

PDF_NAME, PNG_NAME = "logfile.pdf", "montage.png"
