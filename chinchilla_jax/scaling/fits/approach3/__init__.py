"""Approach 3: the surface E + A / N^alpha + B / D^beta. In: runs. Out: its five constants and their uncertainty."""
