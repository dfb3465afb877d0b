"""Processes that do one run together: which they are, how they agree and stop, which cores each one has."""
