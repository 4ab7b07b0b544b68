"""Critters: a procedural world of cartoon animals in which the exact result of an edit is known."""
