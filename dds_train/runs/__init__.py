"""Records of what a folder holds: which inputs and settings made which results."""
