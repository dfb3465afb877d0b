"""Which runs are there? In: a path. Out: `LoadedRuns`: the runs, how they were counted, what was left out and why.

`load.load_runs` is the door. A table goes through `table/`, a study or run directories through `directories`; the types
that all of `scaling` speaks in (`Run`, `Curve`, `LoadedRuns`, `FitRefused`) are in `runs`.
"""
