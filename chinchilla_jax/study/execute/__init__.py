"""Working through a manifest. In: planned runs. Out: run directories, each trained by one worker under a lease.

`backend` names what trains the runs, and finds those that need no training; `pool` is the one of this machine,
processes of `worker`, each of which claims its runs by `lease`. `status` says how far they are and how long they take.
"""
