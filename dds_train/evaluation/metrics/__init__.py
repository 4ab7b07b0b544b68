"""Metrics of edits: one file and one line of `registry.METRICS` each."""
