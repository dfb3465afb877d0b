"""How a run is spread over devices.

In go the mesh of a config and arrays whose axes have logical names; out come meshes with batches in place (`mesh`, and
`topology` for slices that are not there), shardings (`rules`, the one table), and the two parts of a model that are
written out for each device: attention (`attention`, `context`) and the vocabulary (`vocabulary`). `job` is about the
processes that share a run.
"""
