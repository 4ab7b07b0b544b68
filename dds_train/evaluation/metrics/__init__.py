"""How good an edit is. One file for each family of metrics."""
