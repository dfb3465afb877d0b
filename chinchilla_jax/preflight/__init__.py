"""What would a run do on the slice it is meant for? Read from its compiled train step, before a slice is paid for.

In: a config (or the runs of a plan) and the name of a TPU slice, which need not be there. Out: memory, traffic,
predicted time and cost, as a page of text and as JSON. `verb.py` tells the way from the one to the other.
"""
