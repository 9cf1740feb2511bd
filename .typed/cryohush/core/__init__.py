"""Everything that knows no host: files, imaging, models, training and inference."""
