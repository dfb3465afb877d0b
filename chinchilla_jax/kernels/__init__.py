"""Attention as an operation on arrays: one signature, four ways to compute it."""
