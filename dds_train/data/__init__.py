"""Data sources, and batches that depend on (seed, step) alone."""
