"""A device's worker: holds experts and computes what is dispatched."""
