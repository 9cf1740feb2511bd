"""What one command does, from its options to its files."""
