"""RELION's External-job contract."""
