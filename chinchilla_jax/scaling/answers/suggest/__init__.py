"""Which runs next? In: fits and a purse. Out: the runs that narrow the prediction most (`suggest`), by the minima of
approach 2 (`minima_design`) or the surface of approach 3 (`surface_design`)."""
