"""Scaling laws from finished runs: read them, fit them, predict the next budget, report."""
