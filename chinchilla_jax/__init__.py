"""Compute-optimal language-model training: budget, plan, train, fit, predict, verify."""

__version__ = "0.1.0"
