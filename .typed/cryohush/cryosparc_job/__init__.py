"""cryoSPARC's external-job contract."""
