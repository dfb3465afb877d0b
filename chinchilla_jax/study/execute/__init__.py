"""Working through a manifest. In: planned runs. Out: run directories, each trained by one worker under a lease.

`backend` names what trains the runs; `pool` is the one of this machine, processes of `worker`, each of which claims its
runs by `lease`. `pace` says how long they take, `status` how far they are, `reuse` which are the same run.
"""
