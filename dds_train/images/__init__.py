"""Image files: finding, reading, writing, tiling and grids. Knows nothing of models."""
