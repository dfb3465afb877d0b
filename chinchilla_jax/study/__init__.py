"""Studies: plan a set of runs, work through them, see how far they are."""
