"""Approach 1: the envelope of the training curves. In: runs with curves. Out: N* and D* against C."""
