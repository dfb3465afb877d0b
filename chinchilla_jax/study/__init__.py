"""Studies. In: a config with FLOP budgets. Out: a manifest of runs, the runs trained, a checked prediction, a report.

`plan` makes the manifest from `ladder` (which sizes), `guess` (around which optimum), `recipe` (how they are trained)
and `cell` (the runs of a size); `cost` says what it takes; `folder` keeps it; `execute` trains its runs; `noise`
measures luck, `tune` looks for the best recipe; `pipeline` does all of it.
"""
