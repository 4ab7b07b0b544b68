"""How good edits are: evaluation items, metrics, a recommendation and a report."""
