"""Pixels and latents in, batches out."""
