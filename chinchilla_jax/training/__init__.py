"""Trains the run of a `RunConfig` in a directory. In goes a config and a token store, out comes `result.json`.

`loop.py` tells the story: open, resume, step by step, result. `step.py`, `loss.py`, `objective.py`, `optimizer.py` and
`schedule.py` are pure functions, which say what a step computes. `start.py` opens and checks what a run begins with,
`checkpoint.py` keeps its state, `stages.py` joins several configs into one run. `record/` is what a run writes,
`timing/` where its wall time goes, `machine/` what it asks of the machine under it.
"""
