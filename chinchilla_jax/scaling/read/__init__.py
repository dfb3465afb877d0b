"""Which runs are there? In: a path. Out: `LoadedRuns`: the runs, how they were counted, what was left out and why.

`load.load_runs` is the door, and tells the way of a table from its file to its runs; `table/` has a module for each
step. Studies and run directories go through `directories`. `runs` has the types of all of `scaling` (`Run`, `Curve`,
`LoadedRuns`, `FitRefused`) and what a set of runs says of itself.
"""
