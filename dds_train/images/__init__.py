"""Images as files: found, read, written, tiled and laid out in grids. Knows nothing of models."""
